"""What MLflow stores beside a registered bundle: code, so that loading it unpickles nothing."""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd

from data_pipeline.batches.encoding import encode_question, longest_answer
from data_pipeline.media.load import load_media
from data_pipeline.records.schema import Modality
from model.decode.tools import Prompt, calibrate, top_k_tools
from model.decode.trie import ChoiceTrie
from model.llm.bundle import check_encoder, load_bundle


class ToolSelector(mlflow.pyfunc.PythonModel):
    """`mlflow.pyfunc.load_model("models:/toolmm@champion").predict(frame)` names the likeliest tool of each row."""

    def load_context(self, context: Any) -> None:
        self._bundle = load_bundle(context.artifacts["bundle"])
        self._mllm = self._bundle.build_mllm()
        self._trie = ChoiceTrie(self._bundle.catalog.selection_tool_ids, self._mllm.tokenizer)
        self._reserve_tokens = longest_answer(self._mllm.tokenizer, self._bundle.catalog.selection_tool_ids)
        self._encoder: Any = None

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Columns: instruction, modality ("text", "image", "audio", "video"), media (the file's bytes or None)."""
        prompts = [self._prompt(row) for row in model_input.to_dict("records")]
        rankings = top_k_tools(self._mllm, prompts, 1, self._trie, wide=self._bundle.wide)
        best = [calibrate(ranking, self._bundle.info.calibration)[0] for ranking in rankings]
        return pd.DataFrame(
            {"tool_id": [tool.tool_id for tool in best], "probability": [tool.probability for tool in best]}
        )

    def _prompt(self, row: dict[str, Any]) -> Prompt:
        modality = Modality(row["modality"])
        has_media = modality is not Modality.TEXT
        encoded = encode_question(
            self._mllm.tokenizer,
            row["instruction"],
            has_media,
            (),
            self._bundle.info.max_target_tokens,
            self._reserve_tokens,
        )
        vector = self._encode(modality, row["media"]) if has_media else None
        return Prompt(encoded.prompt_ids, vector, row["instruction"])

    def _encode(self, modality: Modality, media: bytes) -> Any:
        import torch

        from model.imagebind.encoders import load_encoder

        if self._encoder is None:
            self._encoder = load_encoder(self._bundle.encoder_name)
            check_encoder(self._bundle, self._encoder.encoder_id)
        array = load_media(modality, bytes(media), recipe=self._encoder.recipe)
        return self._encoder.encode(modality.value, torch.from_numpy(array)[None])[0].numpy()


mlflow.models.set_model(ToolSelector())
