"""Matches the statements of a caption with the true ones.

In: statements of two texts. Out: pairs of statements about one finding, with the number of facts that they share. A
finding on another side or of another organ is another finding. A more precise term (磨玻璃结节 for 肺结节) states the
broader one.
"""

from __future__ import annotations

from collections.abc import Sequence

from qilin.text.statements import Statement, same_site
from qilin.text.vocabulary import is_a

MAX_STATEMENTS = 64  # of one finding in one text; more are a model that repeats itself


def is_compatible(a: Statement, b: Statement) -> bool:
    """Whether two statements of one polarity can be about one finding: no other side and no other site."""
    return a.negated == b.negated and (not a.side or not b.side or a.side == b.side) and same_site(a.site, b.site)


def shared_facts(stated: Statement, true: Statement) -> int:
    """How many facts two compatible statements share: the finding, the side, the site and the details."""
    if stated.base == true.base or is_a(stated.name, true.name):
        shared = 1
    elif is_a(true.name, stated.name):
        shared = 0  # less precise: the finding itself is missed, its side and site are not
    else:
        return 0
    shared += bool(stated.side) and stated.side == true.side
    if not stated.negated:
        shared += (stated.counts_site and true.counts_site) + len(stated.details & true.details)
    return shared


def match_statements(stated: Sequence[Statement], true: Sequence[Statement]) -> list[tuple[int, int, int]]:
    """(index in stated, index in true, shared facts) of each matched pair; the pairs with most in common come first."""
    by_base: dict[tuple[str, bool], list[int]] = {}
    for index, statement in enumerate(true):
        by_base.setdefault((statement.base, statement.negated), []).append(index)
    pairs: list[tuple[int, int, int]] = []
    for index, statement in enumerate(stated):
        same_base = by_base.get((statement.base, statement.negated), [])[:MAX_STATEMENTS]
        pairs += [(shared_facts(statement, true[i]), index, i) for i in same_base if is_compatible(statement, true[i])]
    matched = _choose(pairs)
    used_stated, used_true = {i for i, _, _ in matched}, {j for _, j, _ in matched}
    rest = [i for i in range(len(true)) if i not in used_true][:MAX_STATEMENTS]
    broader = [
        (shared_facts(statement, true[j]), i, j)
        for i, statement in enumerate(stated)
        if i not in used_stated
        for j in rest
        if statement.base != true[j].base and is_compatible(statement, true[j])
    ]
    return matched + _choose([pair for pair in broader if pair[0]])


def _choose(pairs: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Pairs with the most shared facts, each statement used once."""
    used_stated: set[int] = set()
    used_true: set[int] = set()
    chosen = []
    for shared, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if i not in used_stated and j not in used_true:
            used_stated.add(i)
            used_true.add(j)
            chosen.append((i, j, shared))
    return chosen
