"""The checks of every method's answer, on one tiny problem."""

from test_conformance import every_method, shortened

from tdaexp.trust.measure import checks_of


@every_method
def test_all(name, configured, problem):
    problem, method = shortened(problem), configured(name)
    problem = problem if method.both_stages else problem.after("pretrained")
    store = method.attribute(problem)
    for one in checks_of(method, problem, store, k=2):
        print(name, one)
