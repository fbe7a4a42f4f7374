"""A worker of the official Conductor SDK: serves the task `pack` of the platform that the environment names."""

from conductor.client.automator.task_handler import TaskHandler
from conductor.client.configuration.configuration import Configuration
from conductor.client.worker.worker_task import worker_task


@worker_task(task_definition_name="pack", poll_interval_millis=50)
def pack(to: str, label: int) -> dict:
    return {"parcel": f"number {label} for {to}"}


if __name__ == "__main__":
    # Configuration() reads CONDUCTOR_SERVER_URL.
    with TaskHandler(configuration=Configuration(), scan_for_annotated_workers=True) as handler:
        handler.start_processes()
        handler.join_processes()
