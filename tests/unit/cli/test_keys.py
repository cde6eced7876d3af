"""`stillmotion keys`: a key is shown once; and what may listen where without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from model.errors import StillmotionError
from serving import keys as secret
from serving.gateway.auth import any_keys, check_exposed


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["keys", *arguments, "--database-url", f"sqlite:///{folder}/jobs.db"])
    return result.exit_code, result.stdout, result.stderr


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    code, shown, told = run(tmp_path, "create", "studio", "--weight", "2", "--per-minute", "30", "--max-jobs", "4")
    assert code == 0
    token = secret.parse(shown.strip())
    assert token is not None
    assert "not shown again" in told
    assert any_keys(f"sqlite:///{tmp_path}/jobs.db")

    code, shown, _ = run(tmp_path, "list", "--json")
    (key,) = json.loads(shown)
    assert (key["id"], key["name"], key["weight"], key["per_minute"]) == (token.key_id, "studio", 2.0, 30)
    assert token.secret not in shown
    assert "studio" in run(tmp_path, "list")[1]

    assert run(tmp_path, "revoke", "studio")[0] == 0
    assert json.loads(run(tmp_path, "list", "--json")[1])[0]["revoked_at"] is not None
    code, _, told = run(tmp_path, "revoke", "studio")
    assert code == 2
    assert "no valid key" in told
    assert any_keys(f"sqlite:///{tmp_path}/jobs.db"), "a revoked key does not open the service"


def test_a_weight_out_of_range_is_wrong_usage(tmp_path: Path) -> None:
    code, _, told = run(tmp_path, "create", "x", "--weight", "0")
    assert (code, told.count("\n")) == (2, 1)
    assert "no keys" in run(tmp_path, "list")[2]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    check_exposed(host, has_keys=False, allow_unkeyed=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "8.8.8.8", "no-such-host.invalid"])
def test_other_addresses_need_keys_or_a_word(host: str) -> None:
    with pytest.raises(StillmotionError, match="stillmotion keys create"):
        check_exposed(host, has_keys=False, allow_unkeyed=False)
    check_exposed(host, has_keys=True, allow_unkeyed=False)
    check_exposed(host, has_keys=False, allow_unkeyed=True)


def test_serve_refuses_a_public_address_without_keys(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    result = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0", "--port", "0", "--database-url", url])
    assert result.exit_code == 1
    assert "--allow-unkeyed" in result.stderr
