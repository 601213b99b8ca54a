"""The files of deploy/ agree with the server's options and defaults."""

import asyncio
import re
from pathlib import Path

from qilin.serve.config import ServeConfig
from qilin.serve.policy import Exchange, apply_rules, read_policy

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_example_of_a_policy() -> None:
    policy = read_policy(str(DEPLOY / "policy.yaml"))
    for question, codes in (("阿司匹林每天吃多少毫克？", ["medication"]), ("图中有异常吗？", [])):
        decisions = asyncio.run(apply_rules(policy, Exchange(question)))
        assert [decision.code for decision in decisions or ()] == codes
    decisions = asyncio.run(apply_rules(policy, Exchange("图中有异常吗？", "考虑恶性肿瘤")))
    assert [decision.action for decision in decisions or ()] == ["notice"]
    assert not policy.holds_answers


def test_options_of_the_unit_exist() -> None:
    unit = (DEPLOY / "qilin.service").read_text(encoding="utf-8")
    command = unit[unit.index("ExecStart=") : unit.index("Restart=")]
    options = {name.replace("-", "_") for name in re.findall(r"--([a-z-]+)", command)}
    assert options >= {"host", "keys", "allow_host", "audit_log"}
    assert options <= set(ServeConfig.__dataclass_fields__)


def test_proxies_let_bodies_through_and_do_not_buffer() -> None:
    nginx, caddy = ((DEPLOY / name).read_text(encoding="utf-8") for name in ("nginx.conf", "Caddyfile"))
    limit = f"{ServeConfig(model='m').max_body_mib:.0f}"
    assert f"client_max_body_size {limit}m" in nginx
    assert f"max_size {limit}MiB" in caddy
    assert "proxy_buffering off" in nginx
    assert "flush_interval -1" in caddy
