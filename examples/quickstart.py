"""The lines of the README, and a check that the saved model answers as PyTorch does."""

import numpy as np
import torch

import hasten

model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 10))
x = np.ones((1, 64), np.float32)

session = hasten.compile(model, example={"input": x})  # or "model.onnx", a folder, a fitted pipeline
answer = session.run({"input": x})  # a dict of NumPy arrays in, another one out
session.save("mlp.hasten")
session = hasten.open("mlp.hasten")  # needs NumPy alone: no compiler, no framework
again = session(input=x)  # the same as run

print(session)
(name,) = again
difference = np.abs(again[name] - model(torch.from_numpy(x)).detach().numpy()).max()
print(f"{name}: largest difference from PyTorch {difference:.1e}")
