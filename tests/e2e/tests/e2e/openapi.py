"""Checks what openapi.rs sends as JSON on stdin: an OpenAPI document, a JSON Schema, good and bad entries."""

import json
import sys

try:
    from jsonschema import Draft202012Validator
    from openapi_spec_validator import OpenAPIV31SpecValidator
except ImportError as error:
    sys.exit(f"{error}; install what is missing with: cargo xtask setup")

given = json.load(sys.stdin)
problems = [
    f"openapi: {'/'.join(map(str, error.absolute_path))}: {error.message}"
    for error in OpenAPIV31SpecValidator(given["document"]).iter_errors()
]
Draft202012Validator.check_schema(given["schema"])
schema = Draft202012Validator(given["schema"])
for entry in given["good"]:
    problems += [f"refuses {entry}: {error.message}" for error in schema.iter_errors(entry)]
problems += [f"takes {entry}" for entry in given["bad"] if schema.is_valid(entry)]
if problems:
    sys.exit("\n".join(problems))
