import dataclasses

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.cost import distinct_tensors, tensors_by_all_names
from pocketcnn.errors import UnsupportedNet


def test_costs_worked_out_by_hand():
    """conv 3->8, 3x3, stride 2 on 8x8: 4*4*8*3*9 = 3,456; linear 8->5: 40. Numbers: 216 + 8, and 40 + 5."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    cost = pc.measure(net, (3, 8, 8))
    assert (cost.trainable_params, cost.total_params, cost.generated_params) == (269, 269, 269)
    assert cost.macs == 3456 + 40
    assert cost.macs_by_operator == {"convolution": 3456, "addmm": 40}
    assert cost.depth == 2
    assert cost.macs_min is cost.macs_max is None


def test_cost_in_a_notebook():
    page = pc.measure(pc.create_model("resnet20"))._repr_html_()
    assert '<td style="text-align: left">macs of convolution</td>' in page
    assert ">40,813,184</td>" in page
    assert "macs_min" not in page, "what does not apply is left out"
    assert "color" not in page


def test_condconv_by_hand():
    """4 experts of 8x8x3x3 on 4x4: convolution 16*8*8*9 = 9,216; mixing 4*576 = 2,304; router 8*4 = 32."""
    from pocketcnn.methods.condconv import CondConv2d

    net = nn.Sequential(CondConv2d(8, 8, 3, padding=1, bias=False))
    cost = pc.measure(net, (8, 4, 4))
    assert sum(cost.macs_by_operator.values()) == cost.macs == 9216 + 2304 + 32
    assert cost.trainable_params == 4 * 576 + 8 * 4 + 4
    assert cost.generated_params == 576
    assert cost.depth == 1


def test_involution_by_hand():
    """16 channels, K3, one group, on 4x4: sum 16*16*9 = 2,304; generator 16*16*4 and 16*4*9 = 1,024 + 576."""
    from pocketcnn.methods.involution import Involution2d

    cost = pc.measure(nn.Sequential(Involution2d(16, 16, 3, padding=1)), (16, 4, 4))
    assert cost.macs_by_operator == {"convolution": 1024 + 576, "involution": 2304}
    assert cost.generated_params == 9 * 16  # a kernel of 9 for each of 16 pixels
    assert cost.trainable_params == 16 * 4 + 2 * 4 + 4 * 9 + 9
    assert cost.total_params == cost.trainable_params + 2 * 4


def test_ring_counts_once_and_sees_the_plain_net():
    plain = pc.create_model("resnet20")
    small = pc.condense(plain, "ring", size=1000)
    before, after = pc.measure(plain), pc.measure(small)
    assert after.generated_params == before.trainable_params
    assert after.macs == before.macs
    assert after.depth == before.depth == 20
    # Stage convolutions of resnet20: 6 * 2,304 + 4,608 + 5 * 9,216 + 18,432 + 5 * 36,864, shortcuts 512 + 2,048.
    assert before.trainable_params - after.trainable_params == 269_824 - 1000


def test_depth_follows_the_longest_path_through_branches_and_in_place_operations():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.long = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(4)))
            self.short = nn.Conv2d(3, 3, 1)
            self.last = nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.last(torch.cat([self.short(x).relu_(), self.long(x).add_(1)], dim=1))

    assert pc.measure(Branches(), (3, 4, 4)).depth == 5


def test_other_counters_agree_on_plain_nets():
    fvcore = pytest.importorskip("fvcore.nn")
    ptflops = pytest.importorskip("ptflops")
    net = pc.create_model("resnet18", stem="small", num_classes=10).eval()
    ours = pc.measure(net)
    counter = fvcore.FlopCountAnalysis(net, torch.zeros(1, 3, 32, 32)).unsupported_ops_warnings(False)
    counter = counter.uncalled_modules_warnings(False)
    by_operator = counter.by_operator()
    assert by_operator["conv"] + by_operator["linear"] == ours.macs
    theirs, _ = ptflops.get_model_complexity_info(net, (3, 32, 32), as_strings=False, print_per_layer_stat=False)
    assert theirs == pytest.approx(ours.macs, rel=0.02)  # it also counts norms and activations


def test_size_is_the_length_of_the_serialisation():
    from safetensors.torch import save

    net = pc.condense(pc.create_model("resnet20"), "ring")
    assert pc.measure(net).size_bytes == len(save(distinct_tensors(net)))


def test_measuring_leaves_the_net_as_it_was():
    net = pc.create_model("resnet20")
    net.layer1.eval()
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    pc.measure(net)
    pc.measure_latency(net, runs=1, warmup=0)
    pc.measure_memory(net, training=True)
    assert net.training
    assert net.layer2.training
    assert not net.layer1.training
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert net.fc.weight.grad.eq(1).all()
    assert net.conv1.weight.grad is None
    assert not net.conv1._forward_hooks


def test_latency_states_its_settings():
    latency = pc.measure_latency(pc.create_model("resnet20"), (3, 8, 8), batch=2, threads=1, runs=5, warmup=1)
    assert 0 < latency.median_ms <= latency.p95_ms
    assert dataclasses.asdict(latency) | {"median_ms": 0, "p95_ms": 0} == {
        "median_ms": 0, "p95_ms": 0, "batch": 2, "threads": 1, "dtype": "float32", "device": "cpu", "runs": 5,
    }  # fmt: skip
    with pytest.raises(ValueError, match="runs and threads must be at least 1, got 0"):
        pc.measure_latency(nn.Identity(), runs=0)


def test_memory_by_hand():
    """Evaluation: at most a layer's input and output are alive. Training: every activation is kept for the backward."""
    net = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(6)))
    one_map = 2 * 4 * 16 * 16 * 4
    assert pc.measure_memory(net, (4, 16, 16), batch=2) == 2 * one_map
    training = pc.measure_memory(net, (4, 16, 16), batch=2, training=True)
    assert 6 * one_map <= training <= 9 * one_map + 6 * 4 * 4 * 9 * 4


def test_sizes_below_one_are_refused():
    net = pc.create_model("resnet20")
    for measure in (pc.measure, pc.measure_latency, pc.measure_memory):
        with pytest.raises(
            ValueError,
            match=r"input_size is \(channels, height, width\), whole numbers of at least 1, .*, not \(3, -1, 8\)",
        ):
            measure(net, (3, -1, 8))
    with pytest.raises(ValueError, match="batch must be at least 1, not 0"):
        pc.measure_memory(net, batch=0)
    with pytest.raises(ValueError, match="runs and threads must be at least 1, got 50, 0"):
        pc.measure_latency(net, threads=0)


def test_views_of_parts_are_counted_and_saved(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    net(torch.randn(1, 3, 5, 5))
    net.register_buffer("corner", net[0].weight.detach()[:, :, :1, :1])
    assert pc.measure(net, (3, 5, 5)).total_params == sum(p.numel() for p in net.parameters()) + 12
    assert pc.save(net, tmp_path / "net.safetensors") > 0


def test_an_image_that_does_not_fit_is_said():
    with pytest.raises(ValueError, match=r"ResNet cannot take an image of \(1, 8, 8\)"):
        pc.measure(pc.create_model("resnet20"), (1, 8, 8))


class Noted(nn.Linear):
    def get_extra_state(self):
        return {"seen": 1}

    def set_extra_state(self, state):
        pass


def test_extra_state_is_refused():
    for count in (distinct_tensors, tensors_by_all_names):
        with pytest.raises(UnsupportedNet, match=r"_extra_state: extra state of type dict; model files"):
            count(nn.Sequential(Noted(2, 2)))
