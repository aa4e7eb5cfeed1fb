"""Estimators of scikit-learn, LightGBM and XGBoost against themselves, on data that they did not see."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.decomposition import PCA, KernelPCA
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.ensemble import (
    AdaBoostClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
)
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import ElasticNet, LinearRegression, LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    KBinsDiscretizer,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, SVR, LinearSVC, OneClassSVM

import hasten
from hasten import frontends
from hasten.errors import InputError, MissingDependencyError, ModelError, OptionError
from hasten.onnx_backend import HastenRep, prepare_all

pytestmark = pytest.mark.filterwarnings("ignore")  # of scikit-learn about itself, and of converters

CLASSIFIERS = {
    "iris": [
        LogisticRegression(max_iter=500),
        SVC(),
        make_pipeline(MinMaxScaler(), SVC(probability=True, random_state=0)),
        RandomForestClassifier(20, random_state=0),
        KNeighborsClassifier(),
        GaussianNB(),
        QuadraticDiscriminantAnalysis(),
        CalibratedClassifierCV(LinearSVC()),
    ],
    "cancer": [
        make_pipeline(StandardScaler(), SVC(probability=True, random_state=0)),
        make_pipeline(StandardScaler(), LogisticRegression()),
        make_pipeline(RobustScaler(), PCA(8), MLPClassifier((16,), max_iter=200, random_state=0)),
        GradientBoostingClassifier(n_estimators=20, random_state=0),
        AdaBoostClassifier(n_estimators=10, random_state=0),
        make_pipeline(SimpleImputer(), PowerTransformer(), KNeighborsClassifier(3)),
        make_pipeline(StandardScaler(), lightgbm.LGBMClassifier(n_estimators=20, verbose=-1)),
    ],
    "wine": [
        make_pipeline(StandardScaler(), xgboost.XGBClassifier(n_estimators=20)),
        StackingClassifier([("a", GaussianNB()), ("b", RandomForestClassifier(5, random_state=0))]),
        HistGradientBoostingClassifier(max_iter=10),
    ],
    "digits": [
        make_pipeline(Normalizer("max"), MultinomialNB()),
        RandomForestClassifier(10, random_state=0),
    ],
}
REGRESSORS = [
    LinearRegression(),
    ElasticNet(0.1),
    RandomForestRegressor(10, random_state=0),
    HistGradientBoostingRegressor(max_iter=10),
    make_pipeline(PolynomialFeatures(2), KNeighborsRegressor(4)),
    make_pipeline(StandardScaler(), SVR(C=10.0)),
    make_pipeline(StandardScaler(), GaussianProcessRegressor(alpha=1.0, normalize_y=True)),
    lightgbm.LGBMRegressor(n_estimators=10, verbose=-1),
    xgboost.XGBRegressor(n_estimators=10),
]
OTHERS = [
    KMeans(3, n_init=2, random_state=0),
    PCA(2),
    KernelPCA(2, kernel="rbf", gamma=0.1),
    GaussianMixture(3, random_state=0),
    IsolationForest(n_estimators=20, random_state=0),
    make_pipeline(StandardScaler(), OneClassSVM(nu=0.2)),
    make_pipeline(StandardScaler(), KBinsDiscretizer(4, encode="ordinal")),
]
LOADERS = {"iris": load_iris, "cancer": load_breast_cancer, "wine": load_wine, "digits": load_digits}


def halves(loader: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features to learn from, their targets, and features to predict, in float32."""
    x, y = loader(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype(np.float32), y[order]
    return x[: len(x) // 2], y[: len(x) // 2], x[len(x) // 2 :]


def compiled(estimators: list[Any]) -> list[HastenRep]:
    reps = prepare_all(estimators)
    for estimator, rep in zip(estimators, reps, strict=True):
        assert isinstance(rep, HastenRep), (estimator, rep)
    return reps


def test_classifiers_say_what_the_estimators_say():
    fitted = []
    for name, estimators in CLASSIFIERS.items():
        x, y, new = halves(LOADERS[name])
        fitted += [(estimator.fit(x, y), new) for estimator in estimators]
    for (estimator, new), rep in zip(fitted, compiled([e for e, _ in fitted]), strict=True):
        coupled = any(isinstance(s, SVC) and s.probability for _, s in getattr(estimator, "steps", []))
        assert bool(rep.host) == coupled, (estimator, rep.host)
        found = rep.session.run({"X": new})
        np.testing.assert_array_equal(found["label"], estimator.predict(new), err_msg=str(estimator))
        if hasattr(estimator, "predict_proba"):
            right = estimator.predict_proba(new)
            np.testing.assert_allclose(found["probabilities"], right, atol=1e-5, err_msg=str(estimator))


def test_regressors_say_what_the_estimators_say():
    x, y, new = halves(load_diabetes)
    fitted = [estimator.fit(x, y) for estimator in REGRESSORS]
    for estimator, rep in zip(fitted, compiled(fitted), strict=True):
        assert not rep.host, (estimator, rep.host)
        (found,) = rep.run({"X": new})
        right = estimator.predict(new).reshape(found.shape)
        np.testing.assert_allclose(found, right, rtol=1e-5, err_msg=str(estimator))


def test_clusters_outliers_and_transformers():
    x, _, new = halves(load_iris)
    fitted = [estimator.fit(x) for estimator in OTHERS]
    for estimator, rep in zip(fitted, compiled(fitted), strict=True):
        assert not rep.host, (estimator, rep.host)
        found = rep.run({"X": new})
        if hasattr(estimator, "predict"):
            np.testing.assert_array_equal(found[0].ravel(), estimator.predict(new), err_msg=str(estimator))
        for name in ("transform", "decision_function", "predict_proba"):
            if hasattr(estimator, name):
                right = getattr(estimator, name)(new)
                np.testing.assert_allclose(
                    found[-1].reshape(right.shape), right, rtol=1e-4, atol=1e-5, err_msg=str(estimator)
                )


def mixed() -> tuple[np.ndarray, np.ndarray, Any]:
    """Iris with two columns of texts, its species by name, and a pipeline for it."""
    x, y = load_iris(return_X_y=True)
    rng = np.random.default_rng(1)
    table = np.empty((len(x), 6), object)
    table[:, :4] = x.astype(np.float32)
    table[:, 4] = np.where(rng.random(len(x)) < 0.8, np.array(["red", "green", "blue"])[y], "grey")
    table[:, 5] = rng.choice(["no", "yes"], len(x))
    columns = [
        ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), [0, 1, 2, 3]),
        ("colour", OneHotEncoder(handle_unknown="ignore"), [4]),
        ("answer", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), [5]),
    ]
    pipeline = make_pipeline(ColumnTransformer(columns), LogisticRegression(max_iter=500))
    names = np.array(["setosa", "versicolor", "virginica"])
    return table, names[y], pipeline.fit(table[::2], names[y][::2])


def test_columns_of_several_types_have_an_input_each():
    table, _, pipeline = mixed()
    (rep,) = compiled([pipeline])
    assert [i.name for i in rep.session.inputs] == [f"x{k}" for k in range(6)]
    table[3, 4], table[5, 5] = "purple", "perhaps"  # never seen
    feeds = {f"x{k}": table[:, k : k + 1].astype(np.float32 if k < 4 else object) for k in range(6)}
    found = rep.session.run(feeds)
    assert found["label"].tolist() == pipeline.predict(table).tolist()
    np.testing.assert_allclose(found["probabilities"], pipeline.predict_proba(table), atol=1e-5)
    with pytest.raises(InputError, match="rows"):
        rep.session.run(feeds | {"x5": feeds["x5"][:2]})


def test_an_example_says_names_and_types():
    x, y, _ = halves(load_iris)
    columns = ColumnTransformer([("a", StandardScaler(), [0, 3]), ("b", MinMaxScaler(), [1, 2])])
    estimator = make_pipeline(columns, RandomForestClassifier(3, random_state=0)).fit(x, y)
    model = frontends.load(estimator, example={"left": x[:2, :3].astype(np.int64), "right": x[:2, 3:]})
    assert [(v.name, v.dtype.name) for v in model.graph.inputs] == [("left", "INT64"), ("right", "FLOAT")]
    with pytest.raises(OptionError, match="one array"):
        frontends.load(estimator, example=(x, x))


@pytest.mark.parametrize("package", ["lightgbm", "xgboost"])
def test_boosters(package: str):
    x, y, new = halves(load_wine)
    if package == "lightgbm":
        options = {"objective": "multiclass", "num_class": 3, "verbose": -1}
        booster = lightgbm.train(options, lightgbm.Dataset(x, y), 10)
        right = booster.predict(new)
    else:
        booster = xgboost.train({"objective": "multi:softprob", "num_class": 3}, xgboost.DMatrix(x, y), 10)
        right = booster.predict(xgboost.DMatrix(new))
    (rep,) = compiled([booster])
    np.testing.assert_allclose(rep.session.run({"X": new})["probabilities"], right, atol=1e-5)


class Shift(TransformerMixin, BaseEstimator):
    """What no converter knows."""

    def fit(self, x: Any, y: Any = None) -> Shift:
        self.n_features_in_ = x.shape[1]
        return self

    def transform(self, x: Any) -> Any:
        return x + 1


def test_what_cannot_be_converted_is_said(monkeypatch: pytest.MonkeyPatch):
    x, y, _ = halves(load_iris)
    with pytest.raises(ModelError, match="not fitted"):
        frontends.load(LogisticRegression())
    with pytest.raises(ModelError, match="Shift"):
        frontends.load(make_pipeline(Shift(), LogisticRegression()).fit(x, y))
    categories = HistGradientBoostingClassifier(max_iter=2, categorical_features=[1])
    with pytest.raises(ModelError, match="categorical_features"):
        frontends.load(categories.fit(np.abs(x.round()), y))
    with pytest.raises(ModelError, match="weights"):
        frontends.load(KNeighborsClassifier(weights="distance").fit(x, y))
    fitted = LogisticRegression(max_iter=300).fit(x, y)
    with pytest.raises(OptionError, match="rows is symbolic"):
        frontends.load(fitted, dynamic={"X": {0: "n"}})
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(MissingDependencyError, match=r"skl2onnx.*hasten\[sklearn\]"):
        frontends.load(fitted)


@pytest.mark.parametrize("library", ["pickle", "joblib"])
def test_files_that_run_code_are_refused(tmp_path: Path, library: str):
    import joblib

    path = tmp_path / f"model.{library}"
    if library == "pickle":
        path.write_bytes(pickle.dumps(LogisticRegression()))
    else:
        joblib.dump(LogisticRegression(), path, compress=3)
    with pytest.raises(ModelError, match="if you trust it"):
        hasten.compile(str(path))
