"""Text to token ids and back, conversations and tool calls included.

files finds a folder's tokenizer; tokenizer loads it; streaming turns ids back into text as they come; chat_template,
messages, tool_calls, tool_file and fill_in_middle are what a model is asked beside plain text.
"""
