"""A server that speaks OpenAI's, Anthropic's and Mistral's interfaces. Begin with `mistral/server/app.py`."""
