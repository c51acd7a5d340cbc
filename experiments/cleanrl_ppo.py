"""PPO in one file, as CleanRL writes it, trained in the dream and judged on the real env.

    python experiments/cleanrl_ppo.py --total-timesteps 100000
    tensorboard --logdir runs/cleanrl

To be read and copied: everything of the algorithm is here, and the dream is the Gymnasium vector
env that it is trained in. It starts from nothing, so it needs many dreamed steps; `dream_train.py`
starts from the model's own behaviour. (After `ppo.py` of CleanRL, Huang et al. 2022, JMLR 23(274);
PPO: Schulman et al. 2017, arXiv 1707.06347. Unlike there, the value of the last observation is
added where an episode was truncated, as dreams are by their horizon.)
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import envs
import worldsim
from agents.features import MemoryFeatures
from agents.on_the_way import WayReward
from experiments.command_line import run_script
from experiments.playing import FIRST_EVALUATION_SEED


@dataclass(frozen=True, kw_only=True)
class Args:
    """PPO in the dream."""

    env: str = "memory-maze-9x9"
    """The real env to judge on."""
    world_model: str | None = None
    """Shipped name or checkpoint directory; by default the shipped model of the env's name."""
    progress: bool = False
    """Reward progress on the map too, of a model that draws one."""
    seed: int = 1
    total_timesteps: int = 100_000
    """Dreamed steps."""
    learning_rate: float = 2.5e-4
    num_envs: int = 32
    """Dreams side by side."""
    num_steps: int = 32
    """Steps of each dream between two updates."""
    horizon: int = 64
    """Steps of a dreamed episode."""
    gamma: float = 0.98
    gae_lambda: float = 0.95
    num_minibatches: int = 4
    update_epochs: int = 4
    clip_coef: float = 0.2
    ent_coef: float = 0.01
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    eval_episodes: int = 5
    """Real episodes at the end, of mazes that nothing was trained on."""
    max_episode_steps: int | None = None
    """Steps after which these are cut, in place of the env's own limit."""
    output: Path | None = None
    """TensorBoard logs and the agent; by default runs/cleanrl/<env>__<seed>__<time>."""

    def __post_init__(self) -> None:
        for name in (
            *("total_timesteps", "num_envs", "num_steps", "horizon", "num_minibatches"),
            *("update_epochs", "learning_rate", "eval_episodes", "max_episode_steps"),
        ):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        size, rest = divmod(self.num_envs * self.num_steps, self.num_minibatches)
        if rest or size < 2:
            raise ValueError(
                f"{self.num_envs} envs of {self.num_steps} steps do not divide into "
                f"{self.num_minibatches} minibatches of two steps or more"
            )


def layer_init(layer: nn.Linear, std: float = 2**0.5) -> nn.Linear:
    """Orthogonal weights, no bias."""
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    """Actor and critic, networks of their own, on features (n, d) float32."""

    def __init__(self, num_features: int, num_actions: int) -> None:
        super().__init__()
        self.critic = nn.Sequential(
            layer_init(nn.Linear(num_features, 256)), nn.Tanh(), layer_init(nn.Linear(256, 1), 1.0)
        )
        self.actor = nn.Sequential(
            layer_init(nn.Linear(num_features, 256)),
            nn.Tanh(),
            layer_init(nn.Linear(256, num_actions), 0.01),
        )

    def get_value(self, obs: Tensor) -> Tensor:
        return self.critic(obs).squeeze(-1)

    def get_action_and_value(
        self, obs: Tensor, action: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Action, its log probability, the entropy and the value, (n,) each."""
        dist = torch.distributions.Categorical(logits=self.actor(obs))
        action = dist.sample() if action is None else action
        return action, dist.log_prob(action), dist.entropy(), self.get_value(obs)


def main(args: Args) -> list[float]:
    """Train, then play real episodes; returns their returns."""
    torch.manual_seed(args.seed)
    name = args.world_model or args.env
    model = worldsim.load(name)
    real = MemoryFeatures(envs.make(args.env, max_episode_steps=args.max_episode_steps), model)
    dreams = gymnasium.make_vec(
        "worldsim/Dream-v0",
        num_envs=args.num_envs,
        world_model=model,
        contexts=worldsim.load_contexts(name),
        horizon=args.horizon,
        obs="features",
        reward_function=WayReward(model).of_dream if args.progress else None,
        autoreset_mode="SameStep",
    )
    agent = Agent(model.config.num_features, model.config.num_actions)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    run_name = f"{args.env}__{args.seed}__{int(time.time())}"
    output = args.output or Path("runs/cleanrl") / run_name
    writer = SummaryWriter(output)

    shape = (args.num_steps, args.num_envs)
    obs = torch.zeros((*shape, model.config.num_features))
    actions = torch.zeros(shape, dtype=torch.int64)
    logprobs, rewards, dones, values = (torch.zeros(shape) for _ in range(4))
    next_obs = torch.as_tensor(dreams.reset(seed=args.seed)[0])
    dream_returns = np.zeros(args.num_envs)
    step, started = 0, time.time()
    progress = tqdm(total=args.total_timesteps, desc="PPO", unit="step")
    while step < args.total_timesteps:
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - step / args.total_timesteps)
        finished: list[float] = []
        for t in range(args.num_steps):
            obs[t] = next_obs
            with torch.no_grad():
                actions[t], logprobs[t], _, values[t] = agent.get_action_and_value(next_obs)
            result, reward, terminated, truncated, infos = dreams.step(actions[t].numpy())
            next_obs, rewards[t] = torch.as_tensor(result), torch.as_tensor(reward)
            done = terminated | truncated
            dones[t] = torch.as_tensor(done)
            dream_returns += reward
            finished += dream_returns[done].tolist()
            dream_returns[done] = 0.0
            for i in np.flatnonzero(truncated & ~terminated).tolist():  # it would have gone on
                with torch.no_grad():
                    last = agent.get_value(torch.as_tensor(infos["final_obs"][i]))
                rewards[t, i] += args.gamma * last
        step += args.num_envs * args.num_steps
        progress.update(args.num_envs * args.num_steps)

        with torch.no_grad():
            advantages, last_advantage = torch.zeros(shape), torch.zeros(args.num_envs)
            following = agent.get_value(next_obs)
            for t in reversed(range(args.num_steps)):
                goes_on = args.gamma * (1 - dones[t])
                delta = rewards[t] + goes_on * following - values[t]
                last_advantage = delta + goes_on * args.gae_lambda * last_advantage
                advantages[t], following = last_advantage, values[t]
            returns = advantages + values

        batch = [x.flatten(0, 1) for x in (obs, actions, logprobs, advantages, returns)]
        size = len(batch[0]) // args.num_minibatches
        for _ in range(args.update_epochs):
            for rows in torch.randperm(len(batch[0])).split(size):
                b_obs, b_actions, b_logprobs, b_advantages, b_returns = (x[rows] for x in batch)
                _, logprob, entropy, value = agent.get_action_and_value(b_obs, b_actions)
                ratio = (logprob - b_logprobs).exp()
                scaled = (b_advantages - b_advantages.mean()) / (b_advantages.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                pg_loss = -torch.min(ratio * scaled, clipped * scaled).mean()
                v_loss = 0.5 * (value - b_returns).square().mean()
                loss = pg_loss - args.ent_coef * entropy.mean() + args.vf_coef * v_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()

        writer.add_scalar("losses/value_loss", v_loss.item(), step)
        writer.add_scalar("losses/policy_loss", pg_loss.item(), step)
        writer.add_scalar("losses/entropy", entropy.mean().item(), step)
        writer.add_scalar("charts/SPS", step / (time.time() - started), step)
        if finished:
            writer.add_scalar("charts/episodic_return", np.mean(finished), step)
            progress.set_postfix_str(f"dream return {np.mean(finished):.2f}")
    progress.close()
    dreams.close()
    torch.save(agent.state_dict(), output / "agent.pt")
    real_returns = evaluate(agent, real, args.eval_episodes)
    for i, one in enumerate(real_returns):
        writer.add_scalar("eval/episodic_return", one, i)
    writer.close()
    print(f"real return {np.mean(real_returns):.2f} in {len(real_returns)} episodes of {args.env}")
    print(f"everything is in {output}")
    return real_returns


def evaluate(agent: Agent, real: MemoryFeatures, num_episodes: int) -> list[float]:
    """Returns of real episodes, in which the model observes every frame."""
    real_returns = []
    for i in tqdm(range(num_episodes), desc="real episodes"):
        features, _ = real.reset(seed=FIRST_EVALUATION_SEED + i)
        total, over = 0.0, False
        while not over:
            with torch.no_grad():
                action = agent.get_action_and_value(torch.as_tensor(features)[None])[0]
            features, reward, terminated, truncated, _ = real.step(int(action))
            total, over = total + reward, terminated or truncated
        real_returns.append(total)
    real.close()
    return real_returns


if __name__ == "__main__":
    run_script(main, Args, __doc__)
