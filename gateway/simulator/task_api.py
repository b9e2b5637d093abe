"""Asking for tasks: one, all, or to stop one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from litestar import Request, Response, Router, get, post

from gateway.simulator import vendor
from gateway.simulator.replies import Json, Refused
from gateway.simulator.results import BEIJING_OFFSET_S, facts, generate, images_made, issue
from gateway.simulator.simulator import Simulator
from gateway.simulator.tasks import Task
from gateway.simulator.wire import Answer

AnyRequest = Request[Any, Any, Any]


def task_routes(simulator: Simulator) -> Router:
    """`GET /tasks/{id}`, `POST /tasks/{id}/cancel` and `GET /tasks`, below `/api/v1`."""

    @get("/{task_id:str}", sync_to_thread=False)
    def fetch(request: AnyRequest) -> Response[bytes]:
        task_id = request.path_params["task_id"]

        def described(account: str) -> Json:
            task = simulator.tasks.find(task_id, account, simulator.clock())
            if task is None:
                return simulator.replies.success("task-unknown", {"task_id": task_id})
            return describe(simulator, task)

        return _answered(simulator, request, described)

    @post("/{task_id:str}/cancel", sync_to_thread=False, status_code=200)
    def cancel(request: AnyRequest) -> Response[bytes]:
        task_id = request.path_params["task_id"]

        def canceled(account: str) -> Json:
            now = simulator.clock()
            task = simulator.tasks.find(task_id, account, now)
            if task is None or task.status(now) != "PENDING":
                raise Refused("UnsupportedOperation-cancel")
            task.canceled = now
            return simulator.replies.success("task-cancel", {})

        return _answered(simulator, request, canceled)

    @get("/", sync_to_thread=False)
    def listed(request: AnyRequest) -> Response[bytes]:
        return _answered(simulator, request, lambda account: _page(simulator, request, account))

    return Router("/api/v1/tasks", route_handlers=[fetch, cancel, listed])


def settle(simulator: Simulator) -> None:
    """Makes, and so counts as paid, the images of tasks that ended unnoticed."""
    for task in simulator.tasks.all():
        if task.result is None and task.status(simulator.clock()) == "SUCCEEDED":
            describe(simulator, task)


def describe(simulator: Simulator, task: Task) -> Json:
    """A task as the vendor shows it, by its state at this moment."""
    status = task.status(simulator.clock())
    if status == "SUCCEEDED":
        if task.result is None:
            task.result = _result(simulator, task)
        return task.result
    return simulator.replies.success(f"task-{status.lower()}", _task_facts(task))


def _result(simulator: Simulator, task: Task) -> Json:
    if task.endpoint != "image-generation":
        return _old_result(simulator, task)
    body, _ = generate(simulator, task.generation, task.task_id, task.base, task.fault)
    outer = simulator.replies.success("task-succeeded", _task_facts(task))
    return body | {"output": outer["output"] | body["output"]}


def _old_result(simulator: Simulator, task: Task) -> Json:
    """The older paths list `results`, in which an image that failed has a code of its own."""
    generation = task.generation
    made = images_made(simulator, generation, task.fault.kind if task.fault else "")
    simulator.journal.paid[generation.model.name] += made
    known = facts(simulator, generation, task.task_id, made) | _task_facts(task)
    body = simulator.replies.success("task-succeeded-results", known | {"SUCCEEDED": made})
    done, failed = body["output"]["results"]
    done["orig_prompt"] = done["actual_prompt"] = generation.prompt
    if not generation.prompt_extend:
        del done["actual_prompt"]
    urls = issue(simulator, generation, task.task_id, task.base, made)
    missing = [failed] * (generation.n - made)
    body["output"]["results"] = [done | {"url": url} for url in urls] + missing
    body["output"]["task_metrics"]["FAILED"] = len(missing)
    return body


def _task_facts(task: Task) -> Json:
    ended = task.ends if task.canceled is None else task.canceled
    return {
        "task_id": task.task_id,
        "submit_time": _beijing(task.submitted),
        "scheduled_time": _beijing(task.scheduled),
        "end_time": _beijing(ended),
        "TOTAL": task.generation.n,
    }


def _beijing(moment: float) -> str:
    """`2026-11-22 20:15:01.123`, Beijing time without saying so, as the vendor writes it."""
    whole = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment + BEIJING_OFFSET_S))
    return f"{whole}.{int(moment * 1000) % 1000:03d}"


def _page(simulator: Simulator, request: AnyRequest, account: str) -> Json:
    number = int(request.query_params.get("page_no", 1))
    size = int(request.query_params.get("page_size", 10))
    wanted = request.query_params.get("status")
    model = request.query_params.get("model_name")
    now = simulator.clock()
    found = [
        {"task_id": t.task_id, "status": t.status(now), "model_name": t.generation.model.name}
        for t in reversed(simulator.tasks.all())
        if t.account == account
        and wanted in {None, t.status(now)}
        and model in {None, t.generation.model.name}
    ]
    known = {
        "data": found[(number - 1) * size : number * size],
        "total": len(found),
        "total_page": -(-len(found) // size),
        "page_no": number,
        "page_size": size,
    }
    return simulator.replies.success("task-list", known)


def _answered(
    simulator: Simulator, request: AnyRequest, work: Callable[[str], Json]
) -> Response[bytes]:
    """What `work` makes of the caller's account, or the refusal it raises."""
    request_id, now, settings = str(uuid.uuid4()), simulator.clock(), simulator.settings
    try:
        body = work(vendor.account_of(request.scope, settings)) | {"request_id": request_id}
    except Refused as refused:
        return _response(vendor.refusal(refused, simulator.replies, request_id, now, settings))
    return _response(vendor.answer(body, request_id, now, 0.0))


def _response(answer: Answer) -> Response[bytes]:
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    kind = headers.pop("content-type")
    return Response(answer.body, status_code=answer.status, headers=headers, media_type=kind)
