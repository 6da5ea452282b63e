"""The whole idea on one page, in plain numpy: read me first.

A valley: its floor, the river, slopes gently down; its walls, the hills, are steep. Noisy SGD at a high rate drifts
down the river quickly but is thrown about between the hills, which hides the progress. A cooldown at the end lets it
settle on the floor, and the loss falls at once (warmup-stable-decay, here without the warmup; arXiv:2410.05192).

Run me: python -m riverval.toy.minimal
`riverval.toy.simulate` does the same with the same random numbers, bit for bit (for up to 15 runs, where it draws
them from one stream).
"""

import numpy as np

# The schedule: a stable phase, then a linear cooldown over the last fifth. Update t uses lr[t].
steps, cooldown, peak_lr = 2000, 400, 0.1
lr = np.full(steps, peak_lr)
lr[-cooldown:] = peak_lr * (1.0 - np.arange(cooldown) / cooldown)

# The valley: L(x, y) = -slope x + 1/2 sum_i h_i y_i^2, and gradient noise of standard deviation sigma.
slope = 0.04
h = np.array([0.5, 1.0, 2.0, 4.0, 8.0])
sigma = 1.0
start = 0.25


def river(w: np.ndarray) -> np.ndarray:
    """What is left of the loss when the hills are removed: the progress."""
    return -slope * w[0]


def hill(w: np.ndarray) -> np.ndarray:
    """What the bouncing costs."""
    return 0.5 * np.sum(h[:, None] * w[1:] ** 2, axis=0)


def run(seed: int, replicates: int) -> tuple[np.ndarray, np.ndarray]:
    """SGD; returns river and hill loss of the states 0, 1, ..., steps, each of shape (steps + 1, replicates)."""
    rng = np.random.default_rng(seed)
    w = np.full((1 + len(h), replicates), start)
    w[0] = 0.0
    rivers, hills = [river(w)], [hill(w)]
    for t in range(steps):
        gradient = np.concatenate([np.full((1, replicates), -slope), h[:, None] * w[1:]])
        noise = rng.standard_normal(w.shape)
        w = w - lr[t] * (gradient + sigma * noise)
        rivers.append(river(w))
        hills.append(hill(w))
    return np.array(rivers), np.array(hills)


def main() -> None:
    rivers, hills = run(seed=0, replicates=64)
    # Where the noise and the walls balance at a constant rate (exact): sum_i lr sigma^2 / (2 (2 - lr h_i)).
    balance = np.sum(peak_lr * sigma**2 / (2.0 * (2.0 - peak_lr * h)))
    print("state  river loss  hill loss      loss   (means over 64 runs)")
    for state in (0, steps // 2, steps - cooldown, steps):
        a, b = rivers[state].mean(), hills[state].mean()
        print(f"{state:5d}  {a:10.4f}  {b:9.4f}  {a + b:8.4f}")
    print(f"hill loss expected at the constant rate: {balance:.4f}; the cooldown removes most of it, the river stays.")


if __name__ == "__main__":
    main()
