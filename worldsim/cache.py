"""Files of tensors that took long to make, kept with a fingerprint of what they were made from."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def kept_tensors(
    cache: Path | None, fingerprint: str, names: Collection[str]
) -> dict[str, Tensor] | None:
    """Tensors of these names from a file, if it is there, whole, and made from the same."""
    if cache is not None and cache.is_file():
        # A damaged file is as none, and is made again.
        with contextlib.suppress(SafetensorError, OSError), safe_open(cache, "pt") as file:
            same = (file.metadata() or {}).get("fingerprint") == fingerprint
            if same and {*names} <= {*file.keys()}:
                return {name: file.get_tensor(name) for name in names}
    return None


def keep_tensors(cache: Path | None, fingerprint: str, tensors: dict[str, Tensor]) -> None:
    """Write tensors to a file in one move; None keeps nothing."""
    if cache is None:
        return
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_name(f".{cache.name}.partial")
    whole = {name: t.contiguous() for name, t in tensors.items()}
    save_file(whole, partial, metadata={"fingerprint": fingerprint})
    partial.replace(cache)
