"""The tokenizer in the metadata of a GGUF file.

tokens are its pieces and special ids; sentencepiece and byte_level make a vocabulary of them, for the two kinds that
are read; pre_tokenizers are the regular expressions of the second; metadata puts it all together.
"""
