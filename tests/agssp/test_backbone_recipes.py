"""Recipes of backbone pretraining: what they say, and what follows for batches, length and learning rate."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from agssp import recipes
from agssp.recipes import Crop, RateSchedule
from datasets_builders.errors import UserError


@pytest.mark.parametrize("name", ["paper-v1", "mini-v1", "mock-v1"])
@pytest.mark.parametrize("method", list(recipes.METHODS))
def test_every_combination_has_a_recipe(name: str, method: str) -> None:
    for family in recipes.METHODS[method]:
        recipe = recipes.backbone_pretraining(name, family, method)
        assert len(recipe.views) == (2 if method == "mocov3" else 1)
        assert recipe.distillation.loss == ("l2" if family == "swin" else "cosine")
        assert recipe.distillation.weight == "first_iteration"
        assert recipe.distillation.stages == 2
        assert recipe.frozen_stages == 2


@pytest.mark.parametrize(
    ("family", "method", "batch", "optimizer", "rate"),
    [
        ("csp_darknet", "cls", 1024, "SGD", 0.01),
        ("resnet", "cls", 512, "SGD", 0.01),
        ("resnet", "mocov3", 512, "SGD", 0.01),
        ("swin", "cls", 512, "AdamW", 0.0001),
        ("swin", "simmim", 512, "AdamW", 0.0001),
    ],
)
def test_the_papers_table_1(family: str, method: str, batch: int, optimizer: str, rate: float) -> None:
    recipe = recipes.backbone_pretraining("paper-v1", family, method)
    assert recipes.in_paper(family, method)
    assert (recipe.batch_size, recipe.epochs) == (batch, 200)
    assert (recipe.optimizer.type, recipe.optimizer.lr) == (optimizer, rate)
    assert recipe.plan(120_000).steps == 200 * (120_000 // batch)


def test_combinations_outside_the_paper_are_told_apart_and_senseless_ones_refused() -> None:
    assert not recipes.in_paper("lite0", "cls")
    assert not recipes.in_paper("csp_darknet", "mocov3")
    with pytest.raises(
        UserError, match=r"simmim cannot pretrain resnet.*\n.*Methods for resnet: cls, mocov3"
    ):
        recipes.check_combination("resnet", "simmim")
    with pytest.raises(UserError, match="'simmim'"):
        recipes.check_combination("swin", "simim")
    with pytest.raises(UserError, match="'paper-v1'"):
        recipes.backbone_pretraining("paper-v2", "swin", "cls")


class TestPlan:
    RECIPE = recipes.backbone_pretraining("paper-v1", "resnet", "cls")

    @pytest.mark.parametrize(("devices", "accumulation"), [(1, 4), (2, 2), (4, 1), (8, 1)])
    def test_batches_add_up_to_the_recipes(self, devices: int, accumulation: int) -> None:
        plan = self.RECIPE.plan(120_000, devices)
        assert plan.accumulation == accumulation
        assert plan.device_batch * plan.accumulation * devices == 512

    def test_a_corpus_smaller_than_a_batch_is_drawn_again_within_it(self) -> None:
        plan = self.RECIPE.plan(10)
        assert (plan.device_batch, plan.accumulation, plan.steps_per_epoch, plan.epochs) == (128, 4, 1, 200)

    @pytest.mark.parametrize("images", [5, 700, 2_000, 120_000])
    def test_iterations_cost_the_same_whatever_the_corpus(self, images: int) -> None:
        recipe = recipes.BackbonePretraining.model_validate(
            self.RECIPE.model_dump()
            | {"epochs": None, "iterations": 300, "batch_size": 32, "device_batch_size": 32}
        )
        plan = recipe.plan(images)
        assert plan.steps == pytest.approx(300, abs=plan.steps_per_epoch / 2)
        assert plan.steps_per_epoch <= recipes.MOST_STEPS_BETWEEN_STATES
        assert plan.steps_per_unit == 1

    def test_length_is_given_once(self) -> None:
        for changes in ({"epochs": None}, {"iterations": 300}):
            with pytest.raises(ValidationError, match="either epochs or iterations"):
                recipes.BackbonePretraining.model_validate(self.RECIPE.model_dump() | changes)


class TestRateSchedule:
    def test_steps_at_60_90_and_180_of_200_epochs(self) -> None:
        schedule = RateSchedule(type="steps", milestones=(60, 90, 180))
        rates = [
            schedule.factor(epoch * 10, 2000, 10) for epoch in (0, 59.9, 60, 89.9, 90, 179.9, 180, 199.9)
        ]
        assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])

    def test_warm_up_then_half_a_cosine(self) -> None:
        schedule = RateSchedule(type="cosine", warmup=20, final_factor=0.1)
        rates = [schedule.factor(step, 2000, 10) for step in range(2000)]
        assert rates[:200] == pytest.approx([(step + 1) / 200 for step in range(200)])
        assert rates[200] == 1
        assert rates[1100] == pytest.approx(0.55)
        assert rates[-1] == pytest.approx(0.1, abs=1e-4)
        assert rates[200:] == sorted(rates[200:], reverse=True)
        assert rates[650] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 450 / 1800)) / 2)

    def test_a_training_shorter_than_its_warm_up_only_warms_up(self) -> None:
        schedule = RateSchedule(type="cosine", warmup=20)
        assert [schedule.factor(step, 5, 1) for step in range(5)] == pytest.approx(
            [0.05, 0.1, 0.15, 0.2, 0.25]
        )


def test_a_crop_is_described_in_one_way() -> None:
    for settings in ({}, {"resize": (200, 300), "area": (0.2, 1.0)}, {"resize": (300, 200)}):
        with pytest.raises(ValidationError, match="either resize or area"):
            Crop(**settings)
