"""Registers a workflow, lets a worker of the SDK serve it, and reads what came of it."""
import time

from conductor.client.automator.task_handler import TaskHandler
from conductor.client.configuration.configuration import Configuration
from conductor.client.http.models import StartWorkflowRequest, TaskDef, WorkflowDef, WorkflowTask
from conductor.client.orkes_clients import OrkesClients
from conductor.client.worker.worker_task import worker_task


@worker_task(task_definition_name="greet", register_task_def=True)
def greet(name: str) -> dict:
    return {"text": f"Hello {name}"}


@worker_task(task_definition_name="flaky")
def flaky(text: str) -> dict:
    flaky.calls = getattr(flaky, "calls", 0) + 1
    if flaky.calls == 1:
        raise RuntimeError("not this time")
    return {"text": text + "!"}


def main():
    configuration = Configuration()
    clients = OrkesClients(configuration=configuration)
    metadata, workflows = clients.get_metadata_client(), clients.get_workflow_client()
    metadata.register_task_def(TaskDef(name="flaky", retry_count=2, retry_delay_seconds=0))
    tasks = [
        WorkflowTask(name="greet", task_reference_name="greet", type="SIMPLE", input_parameters={"name": "${workflow.input.name}"}),
        WorkflowTask(name="flaky", task_reference_name="flaky", type="SIMPLE", input_parameters={"text": "${greet.output.text}"}),
    ]
    definition = WorkflowDef(name="hello", version=1, tasks=tasks, output_parameters={"text": "${flaky.output.text}"})
    metadata.register_workflow_def(definition, overwrite=True)
    assert metadata.get_workflow_def("hello").name == "hello"

    with TaskHandler(configuration=configuration, scan_for_annotated_workers=True) as handler:
        handler.start_processes()
        request = StartWorkflowRequest(name="hello", input={"name": "Ada"}, correlation_id="c1")
        workflow_id = workflows.start_workflow(request)
        deadline = time.time() + 30
        while time.time() < deadline:
            workflow = workflows.get_workflow(workflow_id, include_tasks=True)
            if workflow.status != "RUNNING":
                break
            time.sleep(0.05)
        assert workflow.status == "COMPLETED", workflow
        assert workflow.output == {"text": "Hello Ada!"}, workflow.output
        statuses = [(task.reference_task_name, task.status) for task in workflow.tasks]
        assert statuses == [("greet", "COMPLETED"), ("flaky", "FAILED"), ("flaky", "COMPLETED")], statuses
        found = workflows.search(query="workflowType=hello AND status=COMPLETED")
        assert [w.workflow_id for w in found.results] == [workflow_id], found
        handler.stop_processes()

    waiting = workflows.start_workflow_by_name("waits", {"a": 1})
    workflows.terminate_workflow(waiting, reason="enough")
    assert workflows.get_workflow(waiting).status == "TERMINATED"
    print("all is well")


if __name__ == "__main__":
    main()
