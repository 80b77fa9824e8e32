"""Makes the calls that come as lines of JSON, and answers each with a line: see driver_test.go."""

import itertools
import json
import os
import sys
from datetime import datetime

sys.path.insert(0, sys.argv[1])
import user_management
from user_management import Reservation, UserManagement, UserManagementError, UnavailableError


class ModelError(Exception):
    pass


def value(given):
    if isinstance(given, dict) and "time" in given:
        return datetime.fromisoformat(given["time"].replace("Z", "+00:00"))
    return given


def run(command):
    options = command.get("options", {})
    if "api_keys" in options:
        keys = itertools.cycle(options.pop("api_keys"))
        options["api_key"] = lambda: next(keys)
    users = UserManagement(command["base"], **options)
    if "call" not in command:
        return {"result": "made"}
    call = getattr(users, command["call"])
    named = {name: value(given) for name, given in command.get("named", {}).items()}
    block = command.get("block")
    if block is not None:
        with call(*command["args"], **named) as reservation:
            if "settle" in block:
                reservation.settle(block["settle"])
            if block.get("release"):
                reservation.release()
            if "used" in block:
                reservation.tokens_used = block["used"]
            if "raise" in block:
                raise ModelError(block["raise"])
            result = "answer"
        return {"result": result}
    answer = call(*command.get("args", []), **named)
    if "take" in command:
        return {"result": list(itertools.islice(answer, command["take"]))}
    if isinstance(answer, Reservation):
        return {"result": answer.answer, "id": answer.id}
    return {"result": answer, "replayed": getattr(answer, "replayed", None), "request_id": getattr(answer, "request_id", None)}


def attempt(command):
    try:
        return run(command)
    except Exception as error:
        of = lambda name: getattr(error, name, None)
        return {
            "error": {
                "class": type(error).__name__,
                "bases": [base.__name__ for base in type(error).__mro__],
                "message": str(error),
                "ours": isinstance(error, UserManagementError),
                "unavailable": isinstance(error, UnavailableError),
                "outcome": of("outcome"),
                "key": of("idempotency_key"),
                "retry_after": of("retry_after"),
                "code": of("code"),
                "detail": of("detail"),
                "tokens_remaining": of("tokens_remaining"),
                "reservation": of("reservation") and of("reservation").id,
            }
        }


for line in sys.stdin:
    print(json.dumps(attempt(json.loads(line))), flush=True)
