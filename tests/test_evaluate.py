from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from fastcl.evaluate import LinearProbe, accuracy, knn_predict, nearest

TRAIN = torch.tensor([[1.0, 0.0], [9.0, 1.0], [0.0, 1.0], [1.0, 5.0], [-1.0, 0.0]])
LABELS = torch.tensor([0, 0, 1, 1, 2])


def test_neighbours_are_by_angle_not_length():
    test = torch.tensor([[100.0, 1.0], [0.01, 0.1], [-5.0, 1.0]])
    assert nearest(TRAIN, test, 2).tolist() == [[0, 1], [3, 2], [4, 2]]
    assert knn_predict(TRAIN, LABELS, test, 1).tolist() == [0, 1, 2]
    assert knn_predict(TRAIN, LABELS, test, 99).tolist() == [0, 1, 2]


def test_the_probe_learns_a_line():
    rng = np.random.RandomState(0)
    points = torch.from_numpy(rng.randn(200, 2))
    labels = (points[:, 0] > points[:, 1]).long()
    probe = LinearProbe(points[:100], labels[:100], c=1.0)
    assert accuracy(probe.predict(points[100:]), labels[100:]) > 0.95
    assert accuracy(probe.predict(points[100:]), 1 - labels[100:]) < 0.05
