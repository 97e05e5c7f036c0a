import own_net
import torch

import pocketcnn as pc


def test_the_small_net_is_trained_saved_and_smaller(few, tmp_path, capsys):
    found = own_net.main(few, epochs=2, output=tmp_path)
    (_, plain), (accuracy, small) = found["plain"], found["pde"]
    # Three blocks of 9 * 16 * 16 + 2 * 16 parameters go; 46 parameters a channel come.
    assert plain.trainable_params - small.trainable_params == 3 * (9 * 16 * 16 + 32) - 46 * 16
    assert small.macs < plain.macs
    assert 0 <= accuracy <= 1
    assert "stage.1  3 x Block" in capsys.readouterr().out
    again = pc.load(tmp_path / "pde", base=own_net.OwnNet())
    assert [type(block).__name__ for block in again.stage] == ["Block", "GlobalLayer"]
    assert again(torch.randn(2, 1, 8, 8)).shape == (2, 10)
