"""License texts and identifiers, and the tier of each."""

import pytest

from qilin.dataset.licenses import TIERS, license_tier, strictest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CC0-1.0", "public"),
        ("CC BY 4.0", "attribution"),
        ("CC BY 3.0", "attribution"),
        ("MIT", "attribution"),
        ("Apache-2.0", "attribution"),
        ("CC-BY-SA-4.0", "sharealike"),
        ("GPL-3.0-only", "sharealike"),
        ("CC BY-NC 4.0", "noncommercial"),
        ("CC BY-NC-SA 4.0", "noncommercial"),
        ("cc-by-nc-nd", "restricted"),
        ("PhysioNet Credentialed Health Data Use Agreement", "restricted"),
        ("http://creativecommons.org/licenses/by/4.0/", "attribution"),
        ("https://creativecommons.org/licenses/by-nc-nd/4.0/", "restricted"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "public"),
        ("Creative Commons Attribution 4.0", "attribution"),
        ("MIT, but no commercial use", "noncommercial"),
        ("CC BY 4.0, for academic use only", "noncommercial"),
        ("CC BY 4.0，禁止商用", "noncommercial"),
        ("CC BY，仅供研究使用", "noncommercial"),
        ("ask the author", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_license_tiers(text: str | None, expected: str) -> None:
    assert license_tier(text) == expected


def test_the_strictest_license_wins() -> None:
    assert strictest(["public", "noncommercial", "attribution"]) == "noncommercial"
    assert strictest(TIERS) == "unknown"
    assert strictest([]) == "unknown"
