"""A language model from safetensors, which knows nothing of thoughts or runs.

Read config, mistral, weights, shards, folders, tokenizer. What needs torch (`mistral`, `weights`,
`shards`) is imported from its own file: tokenizing workers start without it.
"""

from qs.model.config import ModelConfig, read_model_config, read_settings
from qs.model.tokenizer import Tokenizer, train_tokenizer

__all__ = ["ModelConfig", "Tokenizer", "read_model_config", "read_settings", "train_tokenizer"]
