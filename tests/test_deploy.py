"""The Kubernetes files against the schemas that Kubernetes publishes, and against the image."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from migrator.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deploy" / "kubernetes"


def read_objects() -> Iterator[dict[str, Any]]:
    for path in sorted(FOLDER.glob("*.yaml")):
        yield from (found for found in yaml.safe_load_all(path.read_text()) if found["kind"] != "Kustomization")


@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_objects_fit_the_published_schemas(version: str) -> None:
    objects = list(read_objects())
    assert sorted(found["kind"] for found in objects) == [
        "ConfigMap",
        "Job",
        "PersistentVolumeClaim",
        "PersistentVolumeClaim",
        "Secret",
    ]
    for found in objects:
        kubernetes_validate.validate(found, version, strict=True)


def test_a_wrong_field_is_noticed() -> None:
    (job,) = [found for found in read_objects() if found["kind"] == "Job"]
    job["spec"]["completion"] = 4
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.34", strict=True)


def test_names_agree() -> None:
    found: dict[tuple[str, str], dict[str, Any]] = {(o["kind"], o["metadata"]["name"]): o for o in read_objects()}
    job = found["Job", "booking-migration"]
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", job["spec"]["parallelism"])
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for source in container["envFrom"]:
        assert set(found["ConfigMap", source["configMapRef"]["name"]]["data"]) <= {
            n.upper() for n in Settings.model_fields
        }
    for volume in pod["volumes"]:
        if claim := volume.get("persistentVolumeClaim"):
            assert ("PersistentVolumeClaim", claim["claimName"]) in found
        if secret := volume.get("secret"):
            assert ("Secret", secret["secretName"]) in found
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    image = (ROOT / "Dockerfile").read_text()
    for name, variable in (
        ("clients", "CLIENTS"),
        ("reports", "REPORTS"),
        ("snapshots", "BACKUPS"),
        ("passwords", "SECRETS"),
    ):
        assert f"{variable}_DIR={mounts[name]}" in image
    assert f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" in image
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert {path.name for path in FOLDER.glob("*.yaml")} - set(listed) == {"kustomization.yaml", "secret.example.yaml"}
