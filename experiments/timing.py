"""How fast models and agents are trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from agents.actor_critic import ActorCritic
from agents.imagination import ImaginationTrainer, starts_of
from agents.on_the_way import WayConfig, shaping_of
from agents.planner import DreamModel
from experiments.train_config import TrainConfig
from experiments.train_world_model import make_accelerator, near
from worldsim.contexts import ContextBank
from worldsim.latents import LatentEpisodes
from worldsim.training import Trainer, dynamics_loss
from worldsim.training_config import DynamicsTraining, OptimizerConfig
from worldsim.world_model import WorldModel


def median_time(
    function: Callable[[], object], repetitions: int, device: torch.device, warm_up: int = 2
) -> float:
    """Median seconds of a call."""
    times = []
    for i in range(repetitions + warm_up):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i >= warm_up:
            times.append(time.perf_counter() - started)
    return float(np.median(times))


def time_training(
    model: WorldModel,
    length: int,
    frames_per_step: int,
    *,
    compiled: bool = False,
    seed: int = 0,
    repetitions: int = 5,
) -> dict[str, Any]:
    """Frames/s of training a world model on noise, optimiser included.

    Args:
        model: in float32, on the device to train on; it is trained.
        length: frames per segment.
        frames_per_step: of all segments together.
        compiled: compile its network.
        seed: of the noise.
        repetitions: timed steps.
    """
    accelerator = make_accelerator(TrainConfig(device=str(model.device)))
    model.denoiser.requires_grad_(True)
    batch = max(frames_per_step // length, 1)
    rng = np.random.default_rng(seed)
    c = model.config
    shape = (batch * length, *c.tokenizer.latent_shape)
    episodes = LatentEpisodes(
        latents=torch.from_numpy(rng.standard_normal(shape, np.float32)).half(),
        actions=torch.from_numpy(rng.integers(c.num_actions, size=batch * length)),
        rewards=torch.zeros(batch * length),
        terminated=torch.zeros(batch * length, dtype=torch.bool),
        lengths=np.full(batch, length),
        poses=None
        if c.pose is None
        else torch.from_numpy(rng.random((batch * length, 3), np.float32)),
    )
    training = DynamicsTraining(
        optimizer=OptimizerConfig(steps=repetitions + 2),
        frames_per_step=batch * length,
        curriculum=((length, 1.0),),
    )
    loss = dynamics_loss(near(model.device, episodes), training, model, accelerator)
    with FlopCounterMode(display=False) as counter:  # forwards and back; not the optimiser's
        loss(model, 0)[0].backward()
    model.zero_grad(set_to_none=True)
    if compiled:
        model.compile_network()
    steps = Trainer(model, loss, training.optimizer, accelerator).run()
    seconds = median_time(lambda: next(steps), repetitions, model.device)
    flops = counter.get_total_flops() / seconds
    return {
        "frames_per_second": batch * length / seconds,
        "segment_length": length,
        "frames_per_step": batch * length,
        "gflops": flops / 1e9,
        "precision": str(accelerator.mixed_precision),
    }


def time_actor_critic(
    model: WorldModel, bank: ContextBank, num_envs: int, repetitions: int = 5
) -> dict[str, float]:
    """Dreamed steps/s of training an actor-critic as `dream_train.py` does, and of bare dreams.

    Args:
        model, bank: what dreams, and where dreams start.
        num_envs: dreams side by side.
        repetitions: timed updates; between them as many bare dreams of the same number of steps, so
            that what else the machine does slows both alike.

    Returns:
        "steps_per_second" of training, "dream_steps_per_second" of bare dreams, and their ratio,
        "share_of_dreaming".
    """
    shaping = shaping_of(WayConfig(), model)
    agent = ActorCritic.from_behaviour(model, returns=shaping is None)
    dreamer = DreamModel(model)
    trainer = ImaginationTrainer(
        agent.to(model.device),
        dreamer,
        starts_of(bank),
        shaping=shaping,
        num_envs=num_envs,
        horizon=16,
    )
    steps = trainer.config.num_steps

    @torch.no_grad()
    def dream() -> None:
        state = trainer.state
        for _ in range(steps):
            noise = dreamer.draw_noise(num_envs, trainer.generator)
            actions = torch.zeros(num_envs, dtype=torch.int64, device=model.device)
            state = dreamer.step(state, actions, noise).state

    calls = {"steps_per_second": trainer.update, "dream_steps_per_second": dream}
    rounds = [
        {name: median_time(call, 1, model.device, warm_up=0) for name, call in calls.items()}
        for _ in range(repetitions + 1)
    ]
    rates = {
        name: num_envs * steps / float(np.median([one[name] for one in rounds[1:]]))
        for name in calls
    }
    share = rates["steps_per_second"] / rates["dream_steps_per_second"]
    return {"num_envs": num_envs, **rates, "share_of_dreaming": share}
