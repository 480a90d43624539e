"""Grafana is left out, in one line, where its vendor cannot be had; and complete where a package is."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from testinfra.host import Host

from lib.scenario import PROJECT, play
from lib.waiting import wait_for

CONVERGE = PROJECT / "molecule/converge.yml"
LEFT_OUT = "Grafana is left out"
SOON_S = 30.0


def output(variables: dict[str, Any]) -> str:
    """What a run of the role prints."""
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], "-e", json.dumps(variables), CONVERGE]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def vendor(host: Host, uri: str = "file:///srv/vendor") -> dict[str, Any]:
    """The input that names the repository on the machine."""
    key = host.file("/srv/vendor/key.asc").content_string
    return {"grafana_repository": {"uri": uri, "suite": "stable", "components": ["main"], "key": key}}


def page(host: Host) -> dict[str, Any]:
    """What the stand-in understood, asked over verified TLS by the machine's name."""
    ask = "import ssl, urllib.request as u; c = ssl.create_default_context(cafile='/etc/arches/tls/ca.crt'); "
    ask += "print(u.urlopen('https://ops1:3000/', context=c).read().decode())"
    asked = host.run("python3 -c %s", ask)
    assert asked.rc == 0, asked.stderr
    shown: dict[str, Any] = json.loads(asked.stdout)
    return shown


def started(host: Host) -> str:
    """When the service was started."""
    return str(host.check_output("systemctl show -p ActiveEnterTimestampMonotonic --value grafana-server"))


def traces(host: Host) -> list[bool]:
    """What would be there if anything of Grafana was."""
    files = ("/etc/grafana", "/etc/apt/sources.list.d/grafana.sources", "/var/lib/arches/pending/grafana")
    return [host.package("grafana").is_installed, *(host.file(name).exists for name in files)]


@pytest.fixture(scope="module")
def installed(host: Host) -> dict[str, Any]:
    """The variables with which Grafana has been installed."""
    variables = vendor(host)
    assert play(variables=variables)["ops1"] > 0
    wait_for("the stand-in answers", lambda: page(host), SOON_S)
    return variables


def test_without_a_repository_it_is_left_out_in_one_line(host: Host) -> None:
    (told,) = [line for line in output({}).splitlines() if LEFT_OUT in line]
    assert "vendor_repositories" in told
    assert play()["ops1"] == 0
    assert not any(traces(host))


def test_a_repository_that_is_away_stops_nothing(host: Host) -> None:
    """The run goes on, says which repository, and leaves none that would spoil the next `apt update`."""
    lines = output(vendor(host, "file:///srv/nowhere")).splitlines()
    (told,) = [line for line in lines if LEFT_OUT in line]
    assert "file:///srv/nowhere gives no package" in told
    assert not any(traces(host))
    host.check_output("apt-get update -qq")


def test_a_second_run_changes_nothing(host: Host, installed: dict[str, Any]) -> None:
    before = started(host)
    assert play(variables=installed)["ops1"] == 0
    assert started(host) == before


def test_it_serves_its_address_over_tls(host: Host, installed: dict[str, Any]) -> None:
    settings = page(host)["settings"]
    address = settings["server"]["http_addr"]
    assert host.socket(f"tcp://{address}:3000").is_listening
    assert not host.socket("tcp://0.0.0.0:3000").is_listening
    assert settings["server"]["root_url"] == "https://grafana.molecule.test/"
    assert settings["security"]["admin_password"] == "admin-secret"
    assert settings["security"]["secret_key"] == "stored-secret"


def test_a_login_is_needed_unless_it_is_said(host: Host, installed: dict[str, Any]) -> None:
    assert page(host)["settings"]["auth.anonymous"] == {"enabled": "true", "org_role": "Viewer"}
    assert play(variables={**installed, "grafana_anonymous": False})["ops1"] > 0
    wait_for("a login is needed", lambda: page(host)["settings"]["auth.anonymous"]["enabled"] == "false", SOON_S)
    play(variables=installed)
    wait_for("nobody need log in", lambda: page(host)["settings"]["auth.anonymous"]["enabled"] == "true", SOON_S)


def test_nothing_calls_home(host: Host, installed: dict[str, Any]) -> None:
    settings = page(host)["settings"]
    assert set(settings["analytics"].values()) == {"false"}
    assert settings["plugins"]["preinstall_disabled"] == "true"
    assert settings["news"]["news_feed_enabled"] == "false"


def test_the_data_sources_are_those_of_the_dashboards(host: Host, installed: dict[str, Any]) -> None:
    """As the service sees them: with the certificate and the key, which only members of ssl-cert may read."""
    shown = yaml.safe_load(host.file("/etc/grafana/provisioning/datasources/arches.yml").content_string)
    sources = {source["uid"]: source for source in shown["datasources"]}
    assert {uid: source["type"] for uid, source in sources.items()} == {
        "prometheus": "prometheus", "loki": "loki", "jaeger": "jaeger"
    }  # fmt: skip
    assert not any(source["editable"] for source in sources.values())
    assert sources["loki"]["jsonData"]["tlsAuth"] is True
    assert sources["loki"]["url"].startswith("https://")
    understood = page(host)["sources"]
    assert "BEGIN CERTIFICATE" in understood
    assert "PRIVATE KEY" in understood
    used = {
        panel["datasource"]["uid"]
        for file in (PROJECT / "monitoring/dashboards/json").glob("*.json")
        for panel in json.loads(file.read_text())["panels"]
    }
    assert used <= sources.keys()


def test_every_dashboard_is_there_and_read_only(host: Host, installed: dict[str, Any]) -> None:
    folder = PROJECT / "monitoring/dashboards/json"
    assert set(host.file("/etc/grafana/dashboards").listdir()) == {file.name for file in folder.glob("*.json")}
    assert page(host)["home"] == "arches-fleet"
    provider = yaml.safe_load(host.file("/etc/grafana/provisioning/dashboards/arches.yml").content_string)
    assert provider["providers"][0]["allowUiUpdates"] is False


def test_secrets_are_for_the_service_only(host: Host, installed: dict[str, Any]) -> None:
    for name in ("admin_password", "secret_key"):
        file = host.file(f"/etc/grafana/{name}")
        assert (file.user, file.group, file.mode) == ("root", "grafana", 0o640)
    assert "admin-secret" not in host.file("/etc/grafana/grafana.ini").content_string


def test_a_new_dashboard_restarts_nothing(host: Host, installed: dict[str, Any], tmp_path: Path) -> None:
    before = started(host)
    for file in (PROJECT / "monitoring/dashboards/json").glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "arches-new.json").write_text("{}\n")
    assert play(variables={**installed, "grafana_dashboards": str(tmp_path)})["ops1"] == 1
    assert started(host) == before
    host.check_output("rm /etc/grafana/dashboards/arches-new.json")


def test_a_killed_service_is_back(host: Host, installed: dict[str, Any]) -> None:
    before = started(host)
    host.check_output("systemctl kill --signal=KILL grafana-server")
    wait_for("it runs again", lambda: started(host) != before and page(host), SOON_S)
