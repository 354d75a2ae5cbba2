"""An exported joint head: the script answers as `predict`, and the graph of an ensemble blends as `Blend.mix`."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from fastmask.data.contest import contest_heads
from fastmask.export.graph import _add_joint, _add_sums, _Graph
from fastmask.export.predict_onnx import to_rows
from fastmask.heads import JOINT, Head, Heads

THREE = contest_heads()


def with_joint(share: float) -> Heads:
    return Heads([*THREE, Head(JOINT, tuple(THREE.joint_names()), joint_share=share)])


def draw(heads: Heads) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([rng.dirichlet(np.ones(size), 50) for size in heads.sizes], axis=1).astype(np.float32)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_script_answers_with_the_most_probable_joint_class(share):
    heads = with_joint(share)
    p = draw(heads)
    product = np.einsum("ni,nj,nk->nijk", p[:, :3], p[:, 3:5], p[:, 5:8]).reshape(50, 18)
    expected = (share * p[:, 8:] + (1 - share) * product).argmax(1)
    plain = [{"name": h.name, "classes": list(h.classes), "joint_share": h.joint_share} for h in heads]
    header, *rows = to_rows({"heads": plain, "joint": list(heads.classified)}, ["a"] * 50, p)
    assert header[:6] == ["path", "predicted", "mask", "gender", "age", "joint"]
    for row, code in zip(rows, expected, strict=True):
        assert row[1] == str(code)
        assert " ".join(row[2:5]) == row[5] == heads.joint_name(int(code))


@pytest.mark.parametrize("share", [None, 0.25, 1.0])
def test_the_graph_has_the_joint_probabilities_and_their_sums(share):
    heads = THREE if share is None else with_joint(share)
    p, graph = draw(heads), _Graph()
    joint = _add_joint(graph, heads, {name: name for name in heads.names})
    sums = _add_sums(graph, heads, joint)
    graph.add("Identity", [joint], "mixed")
    given = [helper.make_tensor_value_info(h.name, TensorProto.FLOAT, ["batch", len(h.classes)]) for h in heads]
    named = ["mixed", *sums.values()]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None]) for name in named]
    whole = helper.make_graph(graph.nodes, "blend", given, made, graph.initializers)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    mixed, *each = session.run(named, dict(zip(heads.names, heads.split(p), strict=True)))
    expected = heads.joint_probabilities(p)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5)
    for one, want in zip(each, heads.sum_joint(expected), strict=True):
        np.testing.assert_allclose(one, want, rtol=1e-5)
