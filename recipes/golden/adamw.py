"""Runs of torch.optim.AdamW in f32: writes tests/golden/adamw.safetensors.

    python recipes/golden/adamw.py [--out tests/golden]

A case is a prefix `adamw.<n>` of N parameters over STEPS steps, with a learning rate that changes:
    numbers (4)             beta1, beta2, eps, weight decay
    rates (STEPS)           learning rate of each step
    values (N)              at the start
    gradients (STEPS, N)    as large as 1, tiny, or zero, sometimes or always
    after_one (N)           values after the first step
    after, first, second (N)    values and both moments after the last

Numbers are rounded to f32 first, as a backend takes them. Needs requirements.txt beside this file.
"""
import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

STEPS, COUNT = 20, 203
# beta1, beta2, eps, weight decay, largest learning rate.
CASES = ((0.9, 0.999, 1e-8, 1e-2, 1e-3), (0.9, 0.98, 1e-6, 0.0, 1e-2), (0.5, 0.75, 1e-8, 0.5, 0.1))


def run(beta1, beta2, eps, decay, peak, seed):
    """One case."""
    generator = torch.Generator().manual_seed(seed)
    numbers, rates = np.float32([beta1, beta2, eps, decay]), np.float32([peak * n / STEPS for n in range(1, STEPS + 1)])
    beta1, beta2, eps, decay = map(float, numbers)
    values = torch.randn(COUNT, generator=generator)
    gradients = torch.randn(STEPS, COUNT, generator=generator)
    gradients *= torch.tensor([1.0, 1e-4, 1e-8, 1e-12, 0.0])[torch.arange(COUNT) % 5]
    gradients[:, 7::11] *= (torch.arange(STEPS) % 3 == 0)[:, None]
    parameter = values.clone().requires_grad_()
    optimizer = torch.optim.AdamW([parameter], betas=(beta1, beta2), eps=eps, weight_decay=decay, foreach=False)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = float(rates[step])
        parameter.grad = gradients[step].clone()
        optimizer.step()
        if step == 0:
            after_one = parameter.detach().clone()
    state = optimizer.state[parameter]
    tensors = {
        "values": values,
        "gradients": gradients,
        "after_one": after_one,
        "after": parameter.detach(),
        "first": state["exp_avg"],
        "second": state["exp_avg_sq"],
    }
    return {"numbers": numbers, "rates": rates} | {name: tensor.numpy() for name, tensor in tensors.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "tests/golden")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    tensors = {}
    for n, case in enumerate(CASES):
        tensors |= {f"adamw.{n}.{name}": values for name, values in run(*case, seed=n).items()}
    assert all(np.isfinite(t).all() for t in tensors.values())
    save_file(tensors, out / "adamw.safetensors")
    print(len(tensors), "tensors,", (out / "adamw.safetensors").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
