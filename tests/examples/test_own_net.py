import own_net
import pytest

import pocketcnn as pc

pytest.importorskip("onnxruntime")


def test_the_net_is_small_and_serves_without_this_package(digits, tmp_path, capsys):
    found, served = own_net.main(digits, "12k", epochs=4, minutes=0.02, output=tmp_path, width=8)
    assert found.bytes_after <= 12_000
    assert found.after["accuracy"] > found.before["accuracy"] - 0.1 > 0.5
    assert served == pytest.approx(found.after["accuracy"], abs=0.003)
    assert found.onnx_bytes < 25_000, "int8, zeros too"
    assert "in onnxruntime alone" in capsys.readouterr().out
    again = pc.checkpoint.load_weights_(own_net.build(1, width=8), tmp_path / "own.pth")
    assert sum(p.numel() for p in again.parameters()) > 15_000
