"""An HTTP server with the interfaces of OpenAI, Anthropic and Mistral. Start with `mistral/server/app.py`."""
