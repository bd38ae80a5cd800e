"""Every error is {"error": "a sentence"}, whoever found it: our code, the framework, or what validates requests."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from peoplecounter.common.errors import NO_INPUT, SOFTWARE, AppError

ERRORS = (400, 401, 403, 404, 405, 409, 413, 422, 429, 503)  # statuses
STATUS_OF = {NO_INPUT: 404, SOFTWARE: 503}  # of an AppError
PROBLEMS = {  # kinds of pydantic's errors, behind the name of a value
    "missing": "is missing", "extra_forbidden": "is not known here", "json_invalid": "is not JSON",
    "less_than_equal": "must be at most {le}", "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}", "greater_than": "must be more than {gt}",
    "too_short": "has too few values: {min_length} or more", "too_long": "has too many values: {max_length} at most",
    "string_too_long": "is too long: {max_length} characters at most", "literal_error": "must be {expected}",
    "string_pattern_mismatch": "must be letters, digits, - and _", "finite_number": "must be a number",
}  # fmt: skip
ANSWERS = {404: "There is nothing at this address.", 405: "This address does not take such requests."}


def answer_errors(app: FastAPI) -> None:
    """Registers the answers to all errors."""

    def answer(status: int, text: str) -> JSONResponse:
        return JSONResponse({"error": text}, status)

    @app.exception_handler(AppError)
    async def app_error(request: Request, error: AppError) -> JSONResponse:
        return answer(STATUS_OF.get(error.code, 422), str(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        plain = error.detail in (HTTPStatus(error.status_code).phrase, None)
        text = ANSWERS.get(error.status_code, str(error.detail)) if plain else str(error.detail)
        return JSONResponse({"error": text}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(422, _sentence(error.errors()))


def _sentence(errors: Iterable[dict[str, Any]]) -> str:
    """The first of pydantic's errors in words."""
    first = next(iter(errors))
    where = ".".join(str(step) for step in first["loc"] if step not in ("body", "query", "path"))
    context, kind = first.get("ctx", {}), first["type"]
    if kind == "value_error":
        return str(context["error"])[:1].upper() + str(context["error"])[1:] + "."
    if not where:
        return "The request needs a body: a JSON object."
    if kind in PROBLEMS:
        return f"{where} {PROBLEMS[kind].format(**context)}."
    return f"{where} is not valid: {first['msg'][:1].lower()}{first['msg'][1:]}."
