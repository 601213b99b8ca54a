"""Splits: shares are met, and rows that share an image or a group stay together."""

from qilin.dataset.splits import SplitGroups, connecting_keys


def test_shares_are_met_and_groups_stay_together() -> None:
    groups = SplitGroups()
    for n in range(1000):
        groups.add([f"image {n}", f"group {n % 300}"])
    groups.add(["image 0", "image 1"])
    splits = groups.assign(0.1, 0.2, seed=0)
    assert abs(splits.count("test") - 200) <= 3
    assert abs(splits.count("validation") - 100) <= 3
    for n in range(1000):
        assert splits[n] == splits[n % 300]
    assert splits[0] == splits[1] == splits[1000]
    assert groups.assign(0.1, 0.2, seed=0) == splits
    assert groups.assign(0.1, 0.2, seed=1) != splits
    one_large_group = SplitGroups()
    for n in range(50):
        one_large_group.add([f"image {n}", "group one"])
    one_large_group.add(["image a"], split="test")
    one_large_group.add(["image a"], split="validation")
    assert one_large_group.assign(0.1, 0.1, 0) == ["train"] * 50 + ["test"] * 2
    assert SplitGroups().assign(0.1, 0.1, 0) == []


def test_splits_do_not_change_between_versions() -> None:
    """The keys of images and groups are hashed, so another spelling of them would assign other splits."""
    groups = SplitGroups()
    for n in range(12):
        groups.add(connecting_keys([f"{n:064x}"], f"g{n // 2}" if n < 4 else "", f"row {n}"))
    splits = groups.assign(0.25, 0.25, seed=0)
    assert [n for n, split in enumerate(splits) if split == "validation"] == [2, 3, 6]
    assert [n for n, split in enumerate(splits) if split == "test"] == [8, 10, 11]
    assert connecting_keys([], "", "row 1") == ["row 1"]
