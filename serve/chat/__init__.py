"""OpenAI's chat form: what is read from a request, how it is answered and streamed."""
