"""plan: what is chosen fits, and what a step takes is what was foretold."""

from __future__ import annotations

import pytest
import torch

from qs.config import Config
from qs.model.config import ModelConfig
from qs.quietstar.load import Placement
from qs.training.memory import GIB
from qs.training.plan import choose

SEVEN = ModelConfig(32000, 4096, 32, 32, 8, 128, 14336)  # Mistral-7B
SMALL = ModelConfig(4096, 256, 4, 8, 4, 32, 512)
PUBLISHED = Config().changed(thoughts=16)
GPU = Placement(torch.device("cuda"), torch.bfloat16, True, "flex")
CPU = Placement(torch.device("cpu"), torch.float32, False, "structured")


def test_mistral_7b_fits_a_card_of_80_gb_with_its_optimiser_on_the_host():
    plan = choose(PUBLISHED, SEVEN, GPU, 80 * 10**9, 128 * 10**9)
    assert (plan.offload, plan.recompute) == (True, False)
    assert 44e9 < plan.device.weights + plan.device.gradients < 45e9
    assert 89e9 < plan.host.total < 90e9
    assert plan.device.total < 76e9


def test_where_the_host_is_small_too_moments_have_8_bits():
    plan = choose(PUBLISHED, SEVEN, GPU, 80 * 10**9, 32 * 10**9)
    assert (plan.offload, plan.moments, plan.host.total) == (False, "8bit", 0)
    assert 8.1 < (plan.device.total - plan.device.activations) / 7.24e9 < 9.9  # bytes a parameter
    assert plan.device.total < 76e9
    assert "GiB, 8-bit moments and bfloat16 gradients, activations" in str(plan)


@pytest.mark.parametrize("asked", [{"moments": "float32"}, {"offload": True}])
def test_moments_of_8_bits_are_not_chosen_where_a_flag_forbids_them(asked):
    with pytest.raises(ValueError, match="59.6 are available: use a machine with more"):
        choose(PUBLISHED.changed(**asked), SEVEN, GPU, 80 * 10**9, 64 * 10**9)


def test_a_card_that_holds_everything_keeps_the_optimiser():
    plan = choose(PUBLISHED, SEVEN, GPU, 192 * 10**9, None)
    assert (plan.offload, plan.host.total) == (False, 0)


def test_a_teacher_is_held_twice_while_it_stands_in_the_place_of_the_weights():
    config = PUBLISHED.changed(curriculum="9-4,0", activations=64, recompute=False)
    plain, taught = (
        choose(config.changed(distil=x), SMALL, GPU, 24 * GIB, None).device.total
        for x in (0.0, 1.0)
    )
    average = config.changed(reference="average")
    assert choose(average, SMALL, GPU, 24 * GIB, None).device.total == taught > plain


def test_layers_are_recomputed_where_a_small_part_does_not_fit_otherwise():
    assert choose(PUBLISHED, SEVEN, GPU, 58 * 10**9, None).recompute


def test_on_a_cpu_nothing_is_chosen_but_128_mib_of_activations():
    plan = choose(PUBLISHED.changed(batch=1), SMALL, CPU, None, None)
    assert (plan.offload, plan.recompute, plan.activations) == (False, False, 128)


def test_on_a_cpu_a_large_model_reads_a_text_again_for_about_four_times_its_slots():
    """135 million parameters in 128 MiB would read 128 tokens again for every two anchors."""
    shape = ModelConfig(49152, 576, 30, 9, 3, 64, 1536)  # SmolLM2
    config = PUBLISHED.changed(seq=128, anchors="random", anchor_share=0.125, thoughts=8)
    plan = choose(config, shape, CPU, None, None)
    assert plan.activations > 128
    assert plan.anchors == 16  # 416 slots of all that think
    everywhere = choose(config.changed(anchors="all", anchor_share=1.0), shape, CPU, None, None)
    assert everywhere.anchors == 16  # of 20 that fit: parts of equal size


def test_flags_are_obeyed():
    forced = PUBLISHED.changed(offload=False, recompute=True, activations=64)
    plan = choose(forced, SMALL, GPU, 24 * GIB, None)
    assert (plan.offload, plan.recompute, plan.activations) == (False, True, 64)


@pytest.mark.parametrize(
    ("device", "host", "message"),
    [
        (40, 128, "GiB on the device, which has 37.3: use a larger GPU"),
        (60, 64, "host memory, 59.6 are available: use a machine with more"),
    ],
)
def test_what_cannot_fit_is_refused(device, host, message):
    with pytest.raises(ValueError, match=message):
        choose(PUBLISHED, SEVEN, GPU, device * 10**9, host * 10**9)


def test_moments_of_8_bits_are_not_offloaded_nor_shared():
    eight = PUBLISHED.changed(moments="8bit")
    with pytest.raises(ValueError, match="--offload: expected --moments float32, found 8bit"):
        choose(eight.changed(offload=True), SEVEN, GPU, 80 * 10**9, None)
    with pytest.raises(ValueError, match="--moments 8bit: expected one process, found 2"):
        choose(eight, SEVEN, GPU, 80 * 10**9, None, ranks=2)


def test_several_processes_share_the_optimiser_instead_of_offloading_it():
    assert not choose(PUBLISHED, SEVEN, GPU, 80 * 10**9, None, ranks=8).offload
    with pytest.raises(ValueError, match="--offload: expected one process, found 2"):
        choose(PUBLISHED.changed(offload=True), SEVEN, GPU, 80 * 10**9, None, ranks=2)
