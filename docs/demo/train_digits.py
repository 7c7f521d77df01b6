"""Trains a small classifier of handwritten digits, on as many ranks as torchrun started.

Runs where only torch and numpy are installed; ``checkpoint.py`` (hpcscale/train) lies beside it.
What it is given and what it leaves behind is named, so that it runs the same on every site:

- ``$HPCSCALE_INPUT_DIGITS``     digits.npz with ``images`` (n, 64) and ``labels`` (n,)
- ``$HPCSCALE_CHECKPOINT_DIR``   checkpoints; the newest whole one is resumed
- ``$HPCSCALE_OUTPUT_RESULT``    directory for result.json: accuracy, steps, sites and restarts
- ``$HPCSCALE_STOP_FILE``        when it appears: save, then end
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from checkpoint import CheckpointStore, stop_agreed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

SEED = 20


def load(path: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images and labels, test images and labels; a fifth of the data is for the test."""
    with np.load(path) as data:
        images = torch.from_numpy(data["images"].astype(np.float32) / 16.0)
        labels = torch.from_numpy(data["labels"].astype(np.int64))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
    test = len(labels) // 5
    return (
        images[order[test:]],
        labels[order[test:]],
        images[order[:test]],
        labels[order[:test]],
    )


def batch_of(step: int, samples: int, batch: int) -> torch.Tensor:
    """The sample numbers of one step: a function of the step alone.

    A resumed run therefore sees the same batches as one that was never stopped.
    """
    per_epoch = samples // batch
    epoch, position = divmod(step - 1, per_epoch)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(SEED + epoch))
    return order[position * batch : (position + 1) * batch]


def main() -> None:
    """Train, checkpoint, stop when asked, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64, help="samples a step, over all ranks")
    parser.add_argument("--checkpoint-every", type=int, default=50)
    parser.add_argument("--step-seconds", type=float, default=0.0, help="least time of a step")
    args = parser.parse_args()

    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(SEED)

    def say(text: str) -> None:
        if rank == 0:
            print(text, flush=True)

    train_x, train_y, test_x, test_y = load(os.environ["HPCSCALE_INPUT_DIGITS"])
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    store = CheckpointStore(os.environ["HPCSCALE_CHECKPOINT_DIR"])
    found = store.newest()
    step = 0
    if found is not None:
        step = found.step
        model.load_state_dict(store.load(found, "model"))
        optimizer.load_state_dict(store.load(found, "optimizer"))
    restart = int(os.environ.get("HPCSCALE_RESTART_COUNT", "0"))
    site = os.environ.get("HPCSCALE_SITE", "here")
    say(f"start: {world} ranks on {site}, step {step}, restart {restart}")

    parallel = DistributedDataParallel(model)
    stopped = False
    loss_value = float("nan")
    while step < args.steps and not stopped:
        begin = time.monotonic()
        step += 1
        chosen = batch_of(step, len(train_y), args.batch)[rank::world]
        loss = nn.functional.cross_entropy(parallel(train_x[chosen]), train_y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_value = loss.item()
        stopped = stop_agreed()
        if rank == 0 and (stopped or step == args.steps or step % args.checkpoint_every == 0):
            store.save(step, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
            say(f"step {step}: loss {loss_value:.3f}, checkpoint saved")
        time.sleep(max(0.0, args.step_seconds - (time.monotonic() - begin)))

    if stopped:
        say(f"stop: asked to, after step {step}")
    else:
        with torch.no_grad():
            accuracy = (model(test_x).argmax(1) == test_y).double().mean().item()
        say(f"done: step {step}, accuracy {accuracy:.4f} on {len(test_y)} unseen digits")
        output = os.environ.get("HPCSCALE_OUTPUT_RESULT")
        if rank == 0 and output:
            (Path(output) / "result.json").write_text(
                json.dumps({"accuracy": accuracy, "step": step, "site": site, "restarts": restart})
            )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
