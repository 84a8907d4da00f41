"""Holds manifests against Kubernetes' own OpenAPI schemas: schemas.py SCHEMAS MANIFESTS.

SCHEMAS is a directory with api/v1.json, apis/apps/v1.json and so on, as a Kubernetes API server publishes them under /openapi/v3. A
field that the schema does not know is a mistake, as it is to `kubectl --validate=strict`.
"""

import json
import pathlib
import sys

import jsonschema
import yaml


def strict(node):
    """Objects with named fields have no others."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {name: strict(value) for name, value in node.items()}
    if "properties" in node and "x-kubernetes-preserve-unknown-fields" not in node:
        node.setdefault("additionalProperties", False)
    return node


def schema_of(directory, manifest):
    group, _, version = manifest["apiVersion"].rpartition("/")
    path = directory / ("apis" if group else "api") / group / f"{version}.json"
    components = strict(json.loads(path.read_text())["components"])
    for name, schema in components["schemas"].items():
        for known in schema.get("x-kubernetes-group-version-kind", []):
            if (known["group"], known["version"], known["kind"]) == (group, version, manifest["kind"]):
                return {"$ref": f"#/components/schemas/{name}", "components": components}
    raise SystemExit(f"Kubernetes knows no {manifest['apiVersion']} {manifest['kind']}")


def main(directory, manifests):
    mistakes = checked = 0
    for manifest in filter(None, yaml.safe_load_all(pathlib.Path(manifests).read_text())):
        validator = jsonschema.Draft202012Validator(schema_of(pathlib.Path(directory), manifest))
        checked += 1
        for error in validator.iter_errors(manifest):
            mistakes += 1
            print(f"{manifest['kind']} {manifest['metadata']['name']}: {error.json_path}: {error.message}")
    print(f"{checked} manifests, {mistakes} mistakes")
    return 1 if mistakes or not checked else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
