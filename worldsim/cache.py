"""Files of tensors that took long to make, kept with a fingerprint of what they were made from."""

from __future__ import annotations

import contextlib
import warnings
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
    """Write tensors to a file in one move; None keeps nothing.

    Where it cannot be written that is a warning: all goes on, and they are made again next time.
    """
    if cache is None:
        return
    partial = cache.with_name(f".{cache.name}.partial")
    whole = {name: t.contiguous() for name, t in tensors.items()}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file(whole, partial, metadata={"fingerprint": fingerprint})
        partial.replace(cache)
    except (SafetensorError, OSError) as error:
        partial.unlink(missing_ok=True)
        warnings.warn(f"{cache} cannot be kept for the next time: {error}", stacklevel=2)
