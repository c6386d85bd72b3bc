"""C-Eval: Chinese multiple-choice questions on 52 subjects (Huang et al. 2023, https://arxiv.org/abs/2305.08322).

A row has a question, four options and the letter of the right one; most copies have no answers for the test split:

    id  0    question  1+1等于____。    A  1    B  2    C  3    D  4    answer  B

Five protocols (prompts as published; EVALUATION.md says by whom), built by `qwen_eval/multiple_choice.py`. The split is
val (1,346 items) unless `--split test` is given; a whole test run writes the leaderboard's `submission.json`. Score:
the unweighted mean over subjects (lm-eval's protocol: over items); so are the categories and Hard.
"""

from collections.abc import Mapping

from qwen_eval import multiple_choice, prompts
from qwen_eval.multiple_choice import BARE, SPACED
from qwen_eval.scorers import choice
from qwen_eval.task import DatasetSpec, Row, SplitSpec, Task

SUBJECTS = {
    "STEM": {
        "computer_network": "计算机网络", "operating_system": "操作系统", "computer_architecture": "计算机组成",
        "college_programming": "大学编程", "college_physics": "大学物理", "college_chemistry": "大学化学",
        "advanced_mathematics": "高等数学", "probability_and_statistics": "概率统计",
        "discrete_mathematics": "离散数学", "electrical_engineer": "注册电气工程师", "metrology_engineer": "注册计量师",
        "high_school_mathematics": "高中数学", "high_school_physics": "高中物理", "high_school_chemistry": "高中化学",
        "high_school_biology": "高中生物", "middle_school_mathematics": "初中数学", "middle_school_biology": "初中生物",
        "middle_school_physics": "初中物理", "middle_school_chemistry": "初中化学", "veterinary_medicine": "兽医学",
    },
    "Social Science": {
        "college_economics": "大学经济学", "business_administration": "工商管理", "marxism": "马克思主义基本原理",
        "mao_zedong_thought": "毛泽东思想和中国特色社会主义理论体系概论", "education_science": "教育学",
        "teacher_qualification": "教师资格", "high_school_politics": "高中政治", "high_school_geography": "高中地理",
        "middle_school_politics": "初中政治", "middle_school_geography": "初中地理",
    },
    "Humanities": {
        "modern_chinese_history": "近代史纲要", "ideological_and_moral_cultivation": "思想道德修养与法律基础",
        "logic": "逻辑学", "law": "法学", "chinese_language_and_literature": "中国语言文学", "art_studies": "艺术学",
        "professional_tour_guide": "导游资格", "legal_professional": "法律职业资格", "high_school_chinese": "高中语文",
        "high_school_history": "高中历史", "middle_school_history": "初中历史",
    },
    "Other": {
        "civil_servant": "公务员", "sports_science": "体育学", "plant_protection": "植物保护",
        "basic_medicine": "基础医学", "clinical_medicine": "临床医学", "urban_and_rural_planner": "注册城乡规划师",
        "accountant": "注册会计师", "fire_engineer": "注册消防工程师",
        "environmental_impact_assessment_engineer": "环境影响评价工程师", "tax_accountant": "税务师",
        "physician": "医师资格",
    },
}  # fmt: skip

CHINESE_NAMES = {subject: chinese for subjects in SUBJECTS.values() for subject, chinese in subjects.items()}

HARD = (
    "advanced_mathematics", "discrete_mathematics", "probability_and_statistics", "college_physics",
    "college_chemistry", "high_school_mathematics", "high_school_physics", "high_school_chemistry",
)  # fmt: skip

COLUMNS = ("id", "question", *prompts.LETTERS)

DATA = DatasetSpec(
    name="ceval",
    licence="CC BY-NC-SA 4.0 (non-commercial)",
    homepage="https://github.com/hkust-nlp/ceval",
    url=(
        "https://raw.githubusercontent.com/hiyouga/LLaMA-Factory/"
        "65ea7a0d7c37e82f0b46f3808ec336604f18a5e9/evaluation/ceval/ceval.zip"
    ),
    archive="68786deeea68ff089c56563ee48fab8160da857b77b913437bb504d681fd8e20",
    groups=tuple(sorted(CHINESE_NAMES)),
    mini_groups=(
        "basic_medicine",
        "chinese_language_and_literature",
        "high_school_geography",
        "high_school_mathematics",
    ),
    splits={
        "val": SplitSpec(
            file="val/{group}_val.csv",
            columns=(*COLUMNS, "answer"),
            values={"answer": prompts.LETTERS},
            rows=1346,
            fingerprint="3fc0a743ca965b55",
        ),
        "test": SplitSpec(
            file="test/{group}_test.csv",
            columns=COLUMNS,
            optional=("answer",),
            values={"answer": prompts.LETTERS},
            rows=12342,
            fingerprint="70a9f19ce9ac731d",
        ),
        "dev": SplitSpec(
            file="dev/{group}_dev.csv",
            columns=(*COLUMNS, "answer", "explanation"),
            values={"answer": prompts.LETTERS},
            rows=260,
            fingerprint="43d1023da212be5c",
        ),
    },
    folders=("ceval", "ceval/formal_ceval", "ceval-exam", "formal_ceval", "."),
)


def submission(letters: Mapping[str, str | None]) -> dict[str, dict[str, str]]:
    """The leaderboard's form: for every subject, the row numbers and their letters ("" where none was read)."""
    form: dict[str, dict[str, str]] = {}
    for identifier, letter in letters.items():
        subject, _, row = identifier.split("/")
        form.setdefault(subject, {})[row] = letter or ""
    return form


# -------------------------------------------------------------------------------------------------------------- prompts


def opencompass_item(row: Row) -> str:
    """The user's part of an OpenCompass round: the header in every item, an ASCII colon and a space at the end."""
    template = (
        f"以下是中国关于{CHINESE_NAMES[row['group']]}考试的单项选择题，请选出其中的正确答案。\n"
        "{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\n答案: "
    )
    return multiple_choice.filled(template, row, COLUMNS)


TASK = Task(
    name="ceval",
    title="C-Eval",
    paper="https://arxiv.org/abs/2305.08322",
    data=DATA,
    samples=multiple_choice.samples,
    splits=("val", "test"),
    letters=prompts.LETTERS,
    categories={"Hard": HARD, **{category: tuple(subjects) for category, subjects in SUBJECTS.items()}},
    rules=multiple_choice.lettered_rules(choice.qwen_ceval),
    submission=submission,
    protocols=multiple_choice.protocols(
        average="macro",
        qwen=(
            multiple_choice.choose(multiple_choice.chinese_item, options=BARE),
            "Qwen's base script: log-probability of 'A' … 'D'",
        ),
        qwen_chat=(
            multiple_choice.chat(multiple_choice.chinese_chat_item),
            "Qwen's chat script: generation, seven-step extraction",
        ),
        opencompass=(
            # Without a chat template OpenCompass joins all parts, its own line breaks among them, with line breaks.
            multiple_choice.choose(
                lambda row: f"{opencompass_item(row)}\n", options=BARE, between="\n" * 3, before_item="\n" * 5
            ),
            "OpenCompass ceval_ppl_578f8d: log-probability of the letter on a line of its own",
        ),
        opencompass_chat=(
            multiple_choice.rounds(opencompass_item, lambda row: row["answer"]),
            "OpenCompass ceval_gen_5f30c7: five rounds, first upper-case character",
        ),
        lm_eval=(
            multiple_choice.choose(
                multiple_choice.chinese_lm_eval_item,
                options=SPACED,
                header=lambda subject: (
                    f"以下是中国关于{CHINESE_NAMES[subject]}的单项选择题，请选出其中的正确答案。\n\n"
                ),
            ),
            "lm-evaluation-harness ceval-valid, 5-shot: log-probability of ' A' … ' D'",
        ),
    ),
)
