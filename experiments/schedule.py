"""Many jobs at a time, each after the one it needs."""

from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures import Executor as Pool
from functools import partial
from typing import Any

from tqdm import tqdm

from experiments.executors import Executor, ThisProcess
from experiments.jobs import Job
from warm_lightning.errors import UserError


class Serial(Pool):
    """A pool of one: this thread, in which Lightning may listen to signals."""

    def submit(self, call: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments, **named))
        except Exception as error:  # as a thread would
            future.set_exception(error)
        return future


def run_all(
    jobs: Mapping[Job, Job | None], executor: Executor, at_a_time: int, about: dict[str, Any], title: str
) -> dict[Job, str]:
    """Run jobs, each when the one it needs is done.

    Args:
        jobs: each with the job it needs, itself one of them, or None.
        executor: where they run.
        at_a_time: how many at once.
        about: what to note of all of them.
        title: of the progress bar.

    Returns:
        Why some failed, by job; what needs them is not tried.
    """
    failed: dict[Job, str] = {}
    pool: Pool = Serial() if isinstance(executor, ThisProcess) else ThreadPoolExecutor(at_a_time)
    bar = tqdm(total=len(jobs), desc=title, unit=" runs")

    def start(ready: Iterable[Job]) -> dict[Future[None], Job]:
        started = {}
        for job in ready:
            future = pool.submit(job.run, executor, about)
            future.add_done_callback(partial(show, job.name))
            started[future] = job
        return started

    def show(name: str, _: Future[None]) -> None:
        bar.set_postfix_str(name, refresh=False)
        bar.update()

    try:
        waiting = start(job for job, needed in jobs.items() if needed is None)
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                job = waiting.pop(future)
                following = [child for child, needed in jobs.items() if needed == job]
                error = future.exception()
                if error is None:
                    waiting |= start(following)
                    continue
                failed[job] = str(error) if isinstance(error, UserError) else f"{job.name}: {error!r}"
                bar.update(len(following))
                tqdm.write(f"failed: {failed[job]}")
    except KeyboardInterrupt:
        executor.cancel()
        raise
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, which the running ones have had too
        bar.close()
    return failed
