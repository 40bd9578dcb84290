"""The first scaling law: the mean of n samples errs by sigma^2 / n. Measured, not derived.

python docs/examples/laws/mean_of_samples.py > docs/examples/laws/mean-of-samples.csv
"""

import numpy as np

SIGMA, TRIALS = 2.0, 4000

rng = np.random.default_rng(0)
print("samples,loss")
for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
    means = rng.normal(0.0, SIGMA, size=(TRIALS, n)).mean(axis=1)
    print(f"{n},{np.square(means).mean():.6g}")
