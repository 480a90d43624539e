"""Make a signed apt repository in /srv/vendor that holds one package: grafana, the stand-in."""

import hashlib
import pathlib
import shutil
import subprocess
import tempfile

ROOT = pathlib.Path("/srv/vendor")
CONTROL = """Package: grafana
Version: 12.0.0
Architecture: all
Maintainer: Molecule <molecule@example.org>
Depends: python3
Description: stand-in
"""
UNIT = """[Service]
User=grafana
Group=grafana
ExecStart=/usr/bin/python3 /usr/share/grafana/grafana.py
[Install]
WantedBy=multi-user.target
"""
POSTINST = """#!/bin/sh
set -e
getent passwd grafana > /dev/null || useradd --system --user-group --home-dir /usr/share/grafana grafana
"""
HOME = {"GNUPGHOME": "/root/vendor-gpg", "PATH": "/usr/bin:/bin"}


def run(*command: str, **options: object) -> str:
    """Output of a command. Raises CalledProcessError when it fails."""
    return subprocess.run(command, check=True, capture_output=True, text=True, env=HOME, **options).stdout


def digest(file: pathlib.Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


architecture = run("dpkg", "--print-architecture").strip()
index = ROOT / f"dists/stable/main/binary-{architecture}/Packages"
index.parent.mkdir(parents=True)
with tempfile.TemporaryDirectory() as folder:
    tree = pathlib.Path(folder, "grafana")
    files = {
        "DEBIAN/control": CONTROL,
        "DEBIAN/postinst": POSTINST,
        "usr/lib/systemd/system/grafana-server.service": UNIT,
        "usr/share/grafana/grafana.py": pathlib.Path("/usr/local/lib/grafana.py").read_text(),
        "etc/grafana/.keep": "",
    }
    for name, content in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    (tree / "DEBIAN/postinst").chmod(0o755)
    tree.chmod(0o755)
    run("dpkg-deb", "--build", "--root-owner-group", str(tree), str(ROOT / "grafana.deb"))
deb = ROOT / "grafana.deb"
index.write_text(f"{CONTROL}Filename: grafana.deb\nSize: {deb.stat().st_size}\nSHA256: {digest(deb)}\n\n")
release = ROOT / "dists/stable/Release"
name = index.relative_to(release.parent)
release.write_text(
    f"Origin: vendor\nSuite: stable\nCodename: stable\nArchitectures: {architecture} all\nComponents: main\n"
    f"Date: {run('date', '-u', '-R').strip().replace('+0000', 'UTC')}\n"
    f"SHA256:\n {digest(index)} {index.stat().st_size} {name}\n"
)
shutil.rmtree(HOME["GNUPGHOME"], ignore_errors=True)
pathlib.Path(HOME["GNUPGHOME"]).mkdir(mode=0o700)
run("gpg", "--batch", "--passphrase", "", "--quick-generate-key", "vendor@example.org", "ed25519", "sign", "never")
run("gpg", "--batch", "--clearsign", "--output", str(release.with_name("InRelease")), str(release))
(ROOT / "key.asc").write_text(run("gpg", "--armor", "--export", "vendor@example.org"))
