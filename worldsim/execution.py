"""How a world model runs: in what precision, compiled, as CUDA graphs. Never what it computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from worldsim.cuda_graphs import CudaGraphs

if TYPE_CHECKING:
    from worldsim.world_model import WorldModel


class Execution(nn.Module):
    """The part of a `WorldModel` that says how it runs.

    Attributes:
        compute_dtype: autocast dtype of the networks in `observe` and `imagine`; float32 is off.
        cuda_graphs: what replays `imagine`, `observe` of one frame, and dreams in training, if
            anything.
    """

    compute_dtype = torch.float32
    cuda_graphs: CudaGraphs | None = None

    @property
    def device(self) -> torch.device:
        return cast("WorldModel", self).reward_head.values.device

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Move or convert weights; graphs would go on reading where they were."""
        moved = super()._apply(fn, recurse)
        if self.cuda_graphs is not None:
            self.cuda_graphs = CudaGraphs() if self.device.type == "cuda" else None
        return moved

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a saved model, which may be on the CPU now."""
        super().__setstate__(state)  # type: ignore[misc]
        if self.device.type != "cuda":
            self.cuda_graphs = None

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        if self.compute_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.compute_dtype)

    def compile_network(self) -> None:
        """Compile layers, decoder and places (torch.compile); what cannot be runs as before.

        It happens at the first call of each batch size and length, and takes a minute or so. For
        the whole process, it lets what torch.compile cannot do run as before without a word
        (`torch._dynamo.config.suppress_errors`), and a function be compiled for up to 64 kinds of
        input (`recompile_limit`).
        """
        torch._dynamo.config.suppress_errors = True
        torch._dynamo.config.recompile_limit = 64  # layers of one kind share a count of versions
        model = cast("WorldModel", self)
        backbone = model.denoiser.backbone
        parts = [*getattr(backbone, "layers", [backbone]), model.tokenizer.decoder]
        if model.places is not None:
            parts.append(model.places)
        for module in parts:
            module.compile(dynamic=False)

    def use_cuda_graphs(self, *, if_possible: bool = False) -> None:
        """Dream, and observe, every frame by one CUDA graph, recorded at the first of a batch size.

        A recording holds the memory of more states and of all that is between. Call it before
        `compile_network`.

        Args:
            if_possible: change nothing where it cannot be done, instead of raising.

        Raises:
            ValueError: the model is not on a CUDA device, or its memory grows.
        """
        obstacle = self._obstacle_to_graphs()
        if obstacle is None:
            self.cuda_graphs = CudaGraphs()
        elif not if_possible:
            raise ValueError(obstacle)

    def _obstacle_to_graphs(self) -> str | None:
        """Why this model cannot dream by CUDA graphs, if so."""
        if self.device.type != "cuda":
            return f"CUDA graphs need a CUDA device; the model is on {self.device}"
        model = cast("WorldModel", self)
        kind = model.config.backbone.kind
        if kind == "dfot":
            return "CUDA graphs record what does not depend on how many frames there are; dfot does"
        empty = model.initial_state(1)
        actions = torch.zeros(1, 3, device=self.device) if model.told_poses else empty.steps
        noise = torch.zeros(1, *model.noise_shape, device=self.device)
        after = model.imagine(empty, actions, noise=noise, decode=False).state
        for name, t in after.memory.items():
            if t.shape != empty.memory[name].shape:
                return f"CUDA graphs need a memory of constant size; that of {kind} grows ({name})"
        return None
