"""Record tiny random models of stock transformers: `python tests/golden/record_families.py`.

Each folder of tests/golden/families/ gets what stock `save_pretrained` writes, and the logits
(B, T, V) that stock code computes from `input_ids` (B, T) with it, float32 on CPU, attention
`eager`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "families"
SIZES = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {  # of four pairs one is kept, one slowed by the whole factor, two by less
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 0.1,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 8,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {  # folder -> class in transformers, its settings
    "llama": ("Llama", {}),
    "llama3": ("Llama", {"head_dim": 8, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "mistral_nemo": ("Mistral", {"head_dim": 6, "sliding_window": None}),
    "qwen2": ("Qwen2", {"sliding_window": 3, "max_window_layers": 1}),  # the window is off
    "qwen2_tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 6}),
}


def stock_model(case: str, seed: int) -> Any:
    """A stock model all of whose parameters, norms and biases too, are random and matter."""
    import transformers

    kind, settings = CASES[case]
    config = getattr(transformers, f"{kind}Config")(**SIZES | settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            middle = 1.0 if "norm" in name else 0.0
            parameter.normal_(middle, 0.4, generator=generator)
    return model


def tokens(seed: int) -> torch.Tensor:
    """(2, 24) ids, rows longer than the original positions of `LLAMA3`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SIZES["vocab_size"], (2, 24), generator=generator)


def main() -> None:
    """Write every folder."""
    from safetensors.torch import save_file

    for seed, case in enumerate(CASES):
        model, ids = stock_model(case, seed), tokens(seed)
        model.save_pretrained(FOLDER / case)
        (FOLDER / case / "generation_config.json").unlink()
        with torch.no_grad():
            recorded = {"input_ids": ids, "logits": model(ids).logits}
        save_file(recorded, FOLDER / case / "golden_outputs.safetensors")


if __name__ == "__main__":
    main()
