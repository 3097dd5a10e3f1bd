"""The Helm chart and the bulk job: rendered by Helm's own library, validated against the schemas of Kubernetes, and tried on the program.

    python chart.py OUTCROP

Every file of runtime/deploy/helm/examples is a case, and so are the chart's own values. What is deployed names flags and metrics of the
program: a server is started with the environment that its pod would have, and the alerts' metrics are looked for in its answer.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from serving import DEPLOY, FIXTURES, Server, ask, skip

try:
    import helm_python as helm
    import kubernetes_validate
    import yaml
except ImportError as error:
    skip("helm", f"no chart is rendered: {error}; tests/run fetches tests/deploy/requirements.txt, for x86-64 and Python 3.10 or newer")
    sys.exit()

CHART = DEPLOY / "helm/outcrop"
# The oldest that the chart allows, and the newest that there are schemas for.
KUBERNETES = ["1.27", "1.37"]
# The job needs a limit of failures for each index.
KUBERNETES_OF_JOB = ["1.29", "1.37"]
# Kinds of the Prometheus operator, which Kubernetes has no schemas for.
OPERATOR = {"ServiceMonitor", "PrometheusRule"}
# Labels that an upgrade leaves as they are.
STABLE_LABELS = {"app.kubernetes.io/name", "app.kubernetes.io/instance"}
# Models that stand in for those of the values.
STAND_INS = ["xlmr_base", "minicpm_layerwise"]
# Values that have to be refused, and what must be said about them.
REFUSED = [
    ({"models": []}, "models"),
    ({"model": ["a"]}, "model"),
    ({"replicas": "two"}, "replicas"),
    ({"gpus": -1}, "gpus"),
    ({"resources": {"limits": {"memory": "8 GB"}}}, "memory"),
    ({"settings": {"api-key": "x"}}, "api-key"),
    ({"settings": {"apiKey": "secret"}}, "apiKeySecret"),
    ({"settings": {"device": "cuda:0"}}, "say gpus"),
    ({"apiKeySecret": "Not A Name"}, "apiKeySecret"),
    ({"grpcPort": 8080}, "grpcPort"),
    ({"cache": {"accessModes": ["Everywhere"]}}, "accessModes"),
    ({"servedModelNames": ["a", "b"]}, "2 names for 1 models"),
    ({"offline": True, "cache": {"enabled": False}}, "offline"),
    ({"autoscaling": {"enabled": True, "minReplicas": 9}}, "minReplicas"),
]


class Strict(yaml.SafeLoader):
    """YAML in which a key stands once."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key stands twice in {keys}"
        return super().construct_mapping(node, deep)


def documents(text):
    return [document for document in yaml.load_all(text, Strict) if document]


def render(chart, values):
    """Objects by kind, and the notes."""
    chart.validate_schema(values)
    files = chart.render(values, name="release", namespace="space")
    objects = {}
    for name, text in files.items():
        if name.endswith(".yaml"):
            for document in documents(text):
                assert document["kind"] not in objects, f"two of {document['kind']}"
                objects[document["kind"]] = document
    return objects, files["outcrop/templates/NOTES.txt"]


def validate(document, versions):
    if document["kind"] not in OPERATOR:
        for version in versions:
            kubernetes_validate.validate(document, version, strict=True)


def is_selected(selector, labels):
    """Whether a selector finds these labels, in this version of the chart and in the next."""
    return set(selector) == STABLE_LABELS and all(labels.get(key) == value for key, value in selector.items())


def check_references(objects, values):
    """Names in one object are there in another."""
    pod = objects["Deployment"]["spec"]["template"]
    labels, spec = pod["metadata"]["labels"], pod["spec"]
    (container,) = spec["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert is_selected(objects["Deployment"]["spec"]["selector"]["matchLabels"], labels)
    assert is_selected(objects["Service"]["spec"]["selector"], labels)
    assert {port["targetPort"] for port in objects["Service"]["spec"]["ports"]} == ports
    assert is_selected(spec["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"], labels)
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"]:
        assert container[probe]["httpGet"]["port"] in ports
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    if "PersistentVolumeClaim" in objects:
        claim = objects["PersistentVolumeClaim"]["metadata"]["name"]
        assert volumes["cache"]["persistentVolumeClaim"]["claimName"] == claim
    if "PodDisruptionBudget" in objects:
        assert is_selected(objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"], labels)
    if "HorizontalPodAutoscaler" in objects:
        target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("Deployment", objects["Deployment"]["metadata"]["name"])
        assert "replicas" not in objects["Deployment"]["spec"]
    if "NetworkPolicy" in objects:
        policy = objects["NetworkPolicy"]["spec"]
        assert is_selected(policy["podSelector"]["matchLabels"], labels)
        assert {port["port"] for port in policy["ingress"][0]["ports"]} == ports
    if "ServiceMonitor" in objects:
        monitor = objects["ServiceMonitor"]["spec"]
        assert is_selected(monitor["selector"]["matchLabels"], objects["Service"]["metadata"]["labels"])
        (endpoint,) = monitor["endpoints"]
        assert endpoint["port"] in {port["name"] for port in objects["Service"]["spec"]["ports"]}
        assert ("authorization" in endpoint) == bool(values["apiKeySecret"])


def check_pod(objects, values):
    """What a pod may do, and how long it has."""
    spec = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["automountServiceAccountToken"] is False
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] and security["capabilities"] == {"drop": ["ALL"]}
    assert security["allowPrivilegeEscalation"] is False
    assert spec["terminationGracePeriodSeconds"] > values["preStopSeconds"] + values["drainSeconds"]
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == values["startupSeconds"]
    gpus = container["resources"]["limits"].get("nvidia.com/gpu", 0)
    assert gpus == values["gpus"] and container["image"].endswith("-cuda" if gpus else "-cpu")


def pod_environment(objects):
    """The variables of the pod, those out of secrets aside."""
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["serve"]
    names = [variable["name"] for variable in container["env"]]
    assert len(names) == len(set(names)), f"a variable stands twice in {names}"
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


def serve_like(program, environment, scratch):
    """Starts a server as the pod would, asks it something, and returns what its metrics are."""
    count = len(environment["OUTCROP_MODEL"].split(","))
    models = ",".join(str(FIXTURES / name) for name in STAND_INS[:count])
    environment = {**environment, "OUTCROP_MODEL": models, "OUTCROP_DEVICE": "cpu"}
    headers = {}
    if "OUTCROP_API_KEY_FILE" in environment:
        keys = scratch / "keys"
        keys.write_text("first\nsecond\n")
        environment["OUTCROP_API_KEY_FILE"] = str(keys)
        headers["authorization"] = "Bearer second"
    with Server(program, environment) as server:
        answer = ask(server.port, "POST", "/rerank", {"query": "q", "texts": ["a", "b"]}, headers)
        assert answer[0] == 200, answer
        if headers:
            assert ask(server.port, "GET", "/metrics")[0] == 401
        status, _, metrics = ask(server.port, "GET", "/metrics", headers=headers)
        assert status == 200
        return metrics.decode()


def check_metrics(objects, metrics):
    """What alerts and the autoscaler look at is what the server tells."""
    samples = set(re.findall(r"^(\w+)", metrics, re.MULTILINE))
    reasons = set(re.findall(r'err="(\w+)"', metrics))
    if "HorizontalPodAutoscaler" in objects:
        (metric,) = objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
        assert metric["pods"]["metric"]["name"] in samples
        assert metric["pods"]["target"]["averageValue"].isdecimal()
    if "PrometheusRule" in objects:
        rules = [rule for group in objects["PrometheusRule"]["spec"]["groups"] for rule in group["rules"]]
        expressions = " ".join(rule["expr"] for rule in rules)
        named = set(re.findall(r"\b(?:te|outcrop)_\w+", expressions))
        assert len(named) >= 5 and named <= samples, f"no metrics {named - samples}"
        named = set("|".join(re.findall(r'err=~?"([^"]+)"', expressions)).split("|"))
        assert named <= reasons, f"no reasons {named - reasons}"


def check_alerts(objects, scratch):
    """The rules, by Prometheus itself: their form, and when they fire."""
    promtool = shutil.which("promtool")
    if promtool is None:
        skip("promtool", "alerts are not run: no promtool (Debian: apt-get install prometheus)")
        return
    (scratch / "rules.yaml").write_text(yaml.safe_dump({"groups": objects["PrometheusRule"]["spec"]["groups"]}))
    shutil.copy(Path(__file__).parent / "alerts_test.yaml", scratch)
    for command in [["check", "rules", "rules.yaml"], ["test", "rules", "alerts_test.yaml"]]:
        subprocess.run([promtool, *command], cwd=scratch, check=True, stdout=subprocess.DEVNULL)


def check_refusals(chart):
    for values, words in REFUSED:
        try:
            render(chart, values)
        except helm.HelmError as error:
            assert words in str(error), f"{values}: no {words!r} in {error}"
        else:
            raise AssertionError(f"{values} are taken")


def check_job(program, scratch):
    """The job is valid, and its command, shard by shard, gives the file of a single run."""
    (job,) = documents((DEPLOY / "kubernetes/bulk-job.yaml").read_text())
    validate(job, KUBERNETES_OF_JOB)
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    (script,) = container["args"]
    shards = job["spec"]["completions"]
    assert f'"$JOB_COMPLETION_INDEX/{shards}"' in script
    model = FIXTURES / STAND_INS[0]
    script = re.sub(r"--model \S+", f"--model {model}", script.replace("/data/", f"{scratch}/"))
    lines = [{"query": "what is panda?", "passage": f"passage {i} of some"} for i in range(29)]
    (scratch / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    directory = Path(program).parent
    for index in range(shards):
        environment = {"PATH": f"{directory}:/usr/bin:/bin", "JOB_COMPLETION_INDEX": str(index)}
        subprocess.run([*container["command"], script], env=environment, check=True)
    whole = scratch / "whole.jsonl"
    arguments = ["score", "--quiet", "--model", model, "--input", scratch / "pairs.jsonl", "--output", whole]
    subprocess.run([program, *arguments], check=True)
    parts = [(scratch / f"scores-{index}.jsonl").read_bytes() for index in range(shards)]
    assert b"".join(parts) == whole.read_bytes() and len(parts[0]) > 0


def main(program):
    chart = helm.Chart.load(CHART)
    described = subprocess.run([program, "serve", "--help"], check=True, capture_output=True, text=True).stdout
    flags = set(re.findall(r"\[env: (\w+)", described))
    assert len(flags) > 20, described
    examples = sorted((DEPLOY / "helm/examples").glob("*.yaml"))
    seen = set()
    for path in [None, *examples]:
        values = documents(path.read_text())[0] if path else {}
        report = helm.lint(CHART, values, strict=True)
        problems = [message for message in report["messages"] if message["severity"] > 1]
        assert not problems and not report["errors"], report
        objects, notes = render(chart, values)
        for document in objects.values():
            validate(document, KUBERNETES)
        values = chart.merge_values(values)
        assert all(name in notes for name in values["models"]), notes
        check_references(objects, values)
        check_pod(objects, values)
        environment = pod_environment(objects)
        unknown = {name for name in environment if name.startswith("OUTCROP_")} - flags
        assert not unknown, f"the server knows no {unknown}"
        with tempfile.TemporaryDirectory() as scratch:
            check_metrics(objects, serve_like(program, environment, Path(scratch)))
            if "PrometheusRule" in objects:
                check_alerts(objects, Path(scratch))
        seen |= set(objects)
        print(f"{path.name if path else 'values.yaml'}: {', '.join(sorted(objects))}")
    templates = {path.name for path in (CHART / "templates").glob("*.yaml")}
    assert len(seen) == len(templates), f"{len(templates)} templates, but the examples make {seen}"
    check_refusals(chart)
    with tempfile.TemporaryDirectory() as scratch:
        check_job(program, Path(scratch))
    print(f"{len(examples) + 1} sets of values, {len(REFUSED)} refused ones, the bulk job")


if __name__ == "__main__":
    main(*sys.argv[1:])
