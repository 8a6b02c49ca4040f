"""launch/kubernetes: fields that Kubernetes and the training operator know, and the pods' own words, started here."""

import copy
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubeflow.training.models
import kubernetes_validate
import pytest
import yaml

from esl_dist.config import Train
from esl_dist.config_files import load_config
from esl_dist.training.contradictions import check_training
from tests.programs import PROJECT, TINY_TRAINING, environment

FOLDER = PROJECT / "launch/kubernetes"
VERSIONS = ("1.31", kubernetes_validate.latest_version())
"""The oldest that the Job asks for, and the newest that is known."""


def manifests(name: str) -> dict[str, Any]:
    """Return what a file describes, by its kind."""
    return {one["kind"]: one for one in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))}


JOB, SERVICE = manifests("job.yaml")["Job"], manifests("job.yaml")["Service"]
PYTORCH_JOB = manifests("pytorchjob.yaml")["PyTorchJob"]
MASTER = PYTORCH_JOB["spec"]["pytorchReplicaSpecs"]["Master"]
CLAIM = manifests("storage.yaml")["PersistentVolumeClaim"]
PODS = {"job": JOB["spec"]["template"]["spec"], "pytorchjob": MASTER["template"]["spec"]}


def container(pod: Mapping[str, Any]) -> dict[str, Any]:
    [only] = pod["containers"]
    return only


def words_of(pod: Mapping[str, Any]) -> list[str]:
    """Return the program's own words: what stands behind the shell's in the PyTorchJob."""
    words = container(pod)["args"]
    return words[words.index("python") :]


CHOICES = {
    "completionMode": {"Indexed"},
    "action": {"FailJob", "FailIndex", "Ignore", "Count"},
    "operator": {"In", "NotIn"},
    "cleanPodPolicy": {"All", "Running", "None"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "medium": {"Memory"},
    "accessModes": {"ReadWriteMany"},
}
"""What the API takes, and can be meant here, under names that the schemas take any text for."""

QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i|[MGTPE])?")


def refuse_other_values(value: Any, at: str = "", key: str = "") -> None:
    """Fail at a value that Kubernetes does not take, which its schemas do not know."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("requests", "limits"):
                assert all(QUANTITY.fullmatch(str(one)) for one in inner.values()), f"{at}.{name}: {inner}"
            refuse_other_values(inner, f"{at}.{name}", name)
    elif isinstance(value, list):
        for one in value:
            refuse_other_values(one, at, key)
    else:
        assert value in CHOICES.get(key, {value}), f"{at}: {value!r}"
        assert key != "sizeLimit" or QUANTITY.fullmatch(value), f"{at}: {value!r}"


def refuse_other_than_kubernetes(manifest: dict[str, Any], version: str) -> None:
    """Fail at a field or a value that a version of Kubernetes does not take."""
    kubernetes_validate.validate(manifest, version, strict=True)
    refuse_other_values(manifest)
    if manifest["kind"] == "Job":
        # The rules for a pod's failure ask for it.
        assert manifest["spec"]["template"]["spec"]["restartPolicy"] == "Never"
        assert manifest["spec"]["completionMode"] == "Indexed"


def refuse_other_than_the_operator(manifest: dict[str, Any], version: str) -> None:
    """Fail at a field or a value that the training operator, or Kubernetes in the pods' templates, does not take."""
    as_model("KubeflowOrgV1PyTorchJob", manifest)
    refuse_other_values(manifest)
    replicas = manifest["spec"]["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"}
    for replica in replicas.values():
        assert replica["restartPolicy"] == "ExitCode"
        # The operator looks for it by name.
        assert [one["name"] for one in replica["template"]["spec"]["containers"]] == ["pytorch"]
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}}
        kubernetes_validate.validate({**template, "template": replica["template"]}, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", [JOB, SERVICE, CLAIM], ids=lambda one: one["kind"])
def test_kubernetes_takes_every_field_and_value(manifest: dict[str, Any], version: str) -> None:
    refuse_other_than_kubernetes(manifest, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_training_operator_takes_every_field_and_value(version: str) -> None:
    assert PYTORCH_JOB["apiVersion"] == "kubeflow.org/v1"
    refuse_other_than_the_operator(PYTORCH_JOB, version)


def as_model(name: str, value: Any, at: str = "") -> Any:
    """Return what a manifest says as the operator's own model; a field that it does not know, or lacks, is an error."""
    plain = {"str": str, "int": int, "bool": bool}
    if inner := re.fullmatch(r"dict\(str, (.+)\)", name):
        return {key: as_model(inner[1], one, f"{at}.{key}") for key, one in value.items()}
    if inner := re.fullmatch(r"list\[(.+)\]", name):
        return [as_model(inner[1], one, at) for one in value]
    if name in plain:
        assert type(value) is plain[name], f"{at}: {value!r} is no {name}"
        return value
    if not name.startswith("KubeflowOrg"):
        # Kubernetes' own, held by its schemas.
        return value
    model = getattr(kubeflow.training.models, name)
    fields = {field: attribute for attribute, field in model.attribute_map.items()}
    assert set(value) <= set(fields), f"{at}: unknown {sorted(set(value) - set(fields))}"
    types = {field: model.openapi_types[attribute] for field, attribute in fields.items()}
    return model(**{fields[key]: as_model(types[key], one, f"{at}.{key}") for key, one in value.items()})


def breaking(at: str, value: Any) -> Callable[[dict[str, Any]], None]:
    *path, last = at.split(".")

    def change(manifest: Any) -> None:
        for key in path:
            manifest = manifest[int(key) if key.isdigit() else key]
        manifest[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        breaking("spec.completion", 2),
        breaking("spec.template.spec.shm", {}),
        breaking("spec.parallelism", "2"),
        breaking("spec.completionMode", "Bogus"),
        breaking("spec.template.spec.restartPolicy", "Always"),
        breaking("spec.podFailurePolicy.rules.0.action", "Bogus"),
        breaking("spec.podFailurePolicy.rules.0.onExitCodes.operator", "Bogus"),
        breaking("spec.template.spec.containers.0.resources.limits.memory", "24Gib"),
        breaking("spec.template.spec.volumes.1.emptyDir.sizeLimit", "110 GB"),
    ],
)
def test_what_kubernetes_does_not_take_is_found(change: Callable[[dict[str, Any]], None]) -> None:
    manifest = copy.deepcopy(JOB)
    change(manifest)
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        refuse_other_than_kubernetes(manifest, VERSIONS[0])


@pytest.mark.parametrize(
    "change",
    [
        breaking("spec.runPolicy.cleanPods", "Running"),
        breaking("spec.pytorchReplicaSpecs.Worker.replica", 2),
        breaking("spec.pytorchReplicaSpecs.Worker.replicas", "2"),
        breaking("spec", {}),
        breaking("spec.runPolicy.cleanPodPolicy", "Bogus"),
        breaking("spec.pytorchReplicaSpecs.Workers", MASTER),
        breaking("spec.pytorchReplicaSpecs.Worker.restartPolicy", "OnFailure"),
        breaking("spec.pytorchReplicaSpecs.Worker.template", {"spec": {"bogus": 1}}),
        breaking("spec.pytorchReplicaSpecs.Worker.template.spec.containers.0.name", "train"),
        breaking("spec.pytorchReplicaSpecs.Worker.template.spec.containers.0.resources.limits.memory", "24Gib"),
    ],
)
def test_what_the_operator_does_not_take_is_found(change: Callable[[dict[str, Any]], None]) -> None:
    manifest = copy.deepcopy(PYTORCH_JOB)
    change(manifest)
    with pytest.raises((AssertionError, ValueError, KeyError, kubernetes_validate.ValidationError)):
        refuse_other_than_the_operator(manifest, VERSIONS[0])


def test_the_ranks_of_the_job_are_as_many_as_its_pods_and_find_the_first() -> None:
    spec, name = JOB["spec"], JOB["metadata"]["name"]
    given = {one["name"]: one.get("value") for one in container(PODS["job"])["env"]}
    assert given["WORLD_SIZE"] == str(spec["completions"]) == str(spec["parallelism"])
    assert given["MASTER_ADDR"] == f"{name}-0.{SERVICE['metadata']['name']}"
    assert PODS["job"]["subdomain"] == SERVICE["metadata"]["name"]
    assert SERVICE["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    rules = spec["podFailurePolicy"]["rules"]
    names = {rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule}
    assert names == {container(PODS["job"])["name"]}


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_a_pod_runs_as_the_images_user_with_shared_memory_and_time_to_save(pod: dict[str, Any]) -> None:
    dockerfile = (PROJECT / "docker/Dockerfile").read_text(encoding="utf-8")
    user = int(re.findall(r"^ARG UID=(\d+)$", dockerfile, re.MULTILINE)[0])
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (user, True)
    assert pod["terminationGracePeriodSeconds"] >= 60
    volumes = {one["name"]: one for one in pod["volumes"]}
    mounted = {one["mountPath"]: volumes[one["name"]] for one in container(pod)["volumeMounts"]}
    assert mounted["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    folder = next(word for word in words_of(pod) if word.startswith("cache.folder=")).removeprefix("cache.folder=")
    assert "sizeLimit" in mounted[folder]["emptyDir"], "what is fetched stays out of the container's layer"
    assert mounted["/workspace/experiments"]["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_a_pod_trains_with_a_recipe_that_its_ranks_can_share(pod: dict[str, Any]) -> None:
    python, program, option, recipe, *words = words_of(pod)
    assert (python, program, option) == ("python", "launch/train.py", "--config")
    config = load_config(Train, PROJECT / recipe, words)
    check_training(config)
    assert config.batch_size == JOB["spec"]["completions"] * config.accumulate
    assert sum(one["replicas"] for one in PYTORCH_JOB["spec"]["pytorchReplicaSpecs"].values()) == 2


def test_no_job_starts_again_for_ever() -> None:
    for policy in (JOB["spec"], PYTORCH_JOB["spec"]["runPolicy"]):
        assert 86_400 <= policy["activeDeadlineSeconds"] <= 30 * 86_400


def decision(code: int) -> str:
    """Return what the Job's rules say of a pod that ended with a code; `Count` where none fits."""
    for rule in JOB["spec"]["podFailurePolicy"]["rules"]:
        if code in rule.get("onExitCodes", {}).get("values", ()):
            return rule["action"]
    return "Count"


@pytest.mark.parametrize(
    ("code", "expected"), [(2, "FailJob"), (3, "Ignore"), (75, "Ignore"), (1, "Count"), (137, "Count"), (139, "Count")]
)
def test_the_job_starts_again_what_was_stopped_or_lost_another_and_not_a_mistake(code: int, expected: str) -> None:
    assert decision(code) == expected


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (2, 2), (3, 131), (75, 203), (130, 130), (137, 137)])
def test_the_operator_is_told_in_codes_that_it_starts_again(code: int, expected: str) -> None:
    words = in_shell(["sh", "-c", f"exit {code}"])
    assert subprocess.run(words, check=False, timeout=60).returncode == expected


def in_shell(words: Sequence[str]) -> list[str]:
    """Return the PyTorchJob's command line with another program, without tini."""
    one = container(PODS["pytorchjob"])
    command = [*one["command"], *one["args"]]
    assert command[:3] == ["tini", "-g", "--"]
    return [*command[3 : command.index("python")], *words]


def test_a_pods_stop_reaches_the_program_behind_the_shell_which_waits_for_it() -> None:
    program = "trap 'sleep 0.2; exit 75' TERM; echo up; while :; do sleep 0.05; done"
    words = in_shell(["sh", "-c", program])
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as pod:
        assert pod.stdout is not None
        assert pod.stdout.readline() == "up\n"
        stop(pod)
        assert pod.wait(60) == 203


def stop(pod: subprocess.Popen[str]) -> None:
    """Do what `tini -g` does with a pod's SIGTERM."""
    os.killpg(pod.pid, signal.SIGTERM)


@contextmanager
def pods_of_the_job(words: Sequence[str], folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Start the Job's command line, with more words, as its pods are started: the variables are those of a pod."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    given = {one["name"]: one.get("value") for one in container(PODS["job"])["env"]}
    assert sorted(given) == ["MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"]
    command = [sys.executable if word == "python" else word for word in words_of(PODS["job"])]
    pods = []
    for rank in range(int(given["WORLD_SIZE"])):
        # Here they are processes of one machine, without a cluster's names.
        variables = {**given, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
        with open(folder / f"pod-{rank}.txt", "w", encoding="utf-8") as output:
            start = functools.partial(subprocess.Popen, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            pods.append(start([*command, *words], env={**environment(), **variables}, cwd=PROJECT, text=True))
    try:
        yield pods
    finally:
        for pod in pods:
            pod.kill()
            pod.wait()


@pytest.mark.grid
def test_a_stopped_pod_stops_the_other_and_both_go_on_when_they_start_again(town: Path, tmp_path: Path) -> None:
    small = [f"{domain}={{path: {town}/{domain}_train, size: null}}" for domain in ("source", "target")]
    small += ["class_set=null", "network.start=null", "network.auxiliary_head=false", *TINY_TRAINING]
    small += [
        "accumulate=1",
        "precision=no",
        "optimizer.schedule_steps=1000000",
        "checkpoints.every=4",
        "timeout_minutes=2",
        f"experiments={tmp_path}",
        "name=r",
    ]
    checkpoints = tmp_path / "snapshots/r/checkpoints"
    with pods_of_the_job([*small, "steps=100000"], tmp_path) as pods:
        deadline = time.monotonic() + 240
        while not any(checkpoints.glob("step-*[0-9]")) and all(pod.poll() is None for pod in pods):
            assert time.monotonic() < deadline, "no checkpoint"
            time.sleep(0.01)
        stop(pods[1])
        codes = [pod.wait(120) for pod in pods]
    assert [decision(code) for code in codes] == ["Ignore", "Ignore"], (tmp_path / "pod-0.txt").read_text()
    assert codes == [75, 75]
    saved = max(int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-????????"))
    with pods_of_the_job([*small, f"steps={saved + 2}"], tmp_path) as pods:
        assert [pod.wait(240) for pod in pods] == [0, 0], (tmp_path / "pod-0.txt").read_text()
    assert (tmp_path / "snapshots/r/weights.safetensors").is_file()
