"""The schedule for real: a night is a minute here."""

from collections.abc import Callable

from release import Object, Release, ended, holds, until


def searches(release: Release) -> list[Object]:
    return release.get("experiments", "--selector=nas/job")


def jobs(release: Release) -> list[str]:
    """Names of the schedule's Jobs that are over."""
    found = release.get("jobs", "--selector=app.kubernetes.io/name=schedule")
    return [job["metadata"]["name"] for job in found if holds(job, "Complete")]


def said(release: Release, job: str) -> str:
    return release.kubectl("logs", f"job/{job}", "--container=schedule", check=False)  # old ones go meanwhile


def test_the_schedule_searches_and_looks_first_whether_there_is_anything_new(
    new_release: Callable[..., Release],
) -> None:
    release = new_release().install(
        experiment__schedule="* * * * *",
        experiment__maxTrials=1,
        experiment__parallelTrials=1,
        experiment__maxFailedTrials=1,
        experiment__trainer__args__epochs=1,
        experiment__cronJob__successfulJobsHistoryLimit=1,
    )
    release.wait_for_search()
    night = until(lambda: [e for e in searches(release) if ended(e)], "the end of a scheduled search")[0]
    name = night["metadata"]["name"]
    assert name.startswith("iris-nas-20")
    assert name in {event["trial"].split("/")[0] for event in release.history}
    (owner,) = night["metadata"]["ownerReferences"]
    release.wait("condition=Complete", f"job/{owner['name']}")
    assert f"{name} is created" in said(release, owner["name"])
    assert f"{name}: Succeeded" in said(release, owner["name"])

    release.upgrade(experiment__onlyWhenDataChanges=True)
    until(lambda: "no search: a model of iris" in said(release, jobs(release)[-1]), "a night off")
    until(lambda: not searches(release), "the old search to go with its Job")
    assert len(release.store("list").splitlines()) > 1  # its models are still there

    release.upgrade(experiment__cronJob__suspend=True)
    (cron,) = release.get("cronjobs")
    assert cron["spec"]["suspend"] is True


def test_the_schedules_account_may_do_nothing_but_create_and_read_experiments(
    new_release: Callable[..., Release],
) -> None:
    release = new_release().install(experiment__schedule="@yearly", experiment__enabled=True)
    account = f"--as=system:serviceaccount:{release.namespace}:iris-nas-schedule"

    def may(*words: str) -> bool:
        return release.kubectl("auth", "can-i", *words, account, check=False).strip() == "yes"

    assert may("create", "experiments")
    assert may("list", "experiments")
    for words in (("delete", "experiments"), ("patch", "experiments"), ("get", "secrets"), ("create", "pods")):
        assert not may(*words)
    assert not may("create", "experiments", "--namespace=default")
