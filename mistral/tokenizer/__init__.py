"""Text to token ids and back, conversations and tool calls included.

files finds a folder's tokenizer; tokenizer loads it; streaming decodes ids as they are generated; chat_template,
messages, tool_calls, tool_file and fill_in_middle are for prompts other than plain text.
"""
