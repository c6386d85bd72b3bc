"""CMMLU: Chinese multiple-choice questions on 67 subjects (Li et al. 2023, https://arxiv.org/abs/2306.09212).

A row has a question, four options and the letter of the right one:

    question  下列哪一项是水的化学式？    A  H2O    B  CO2    C  O2    D  NaCl    answer  A

Five protocols (prompts as published; EVALUATION.md says by whom), built by `qwen_eval/multiple_choice.py`. Qwen
published no chat script for CMMLU: `qwen-chat` is C-Eval's chat prompt and rule. Score: the unweighted mean over
subjects (lm-eval's protocol: over all 11,582 test items); the other one stands beside it.
"""

from qwen_eval import multiple_choice, prompts
from qwen_eval.multiple_choice import BARE, SPACED
from qwen_eval.scorers import choice
from qwen_eval.task import DatasetSpec, Row, SplitSpec, Task

SUBJECTS = {
    "STEM": {
        "anatomy": "解剖学", "astronomy": "天文学", "college_actuarial_science": "大学精算学",
        "college_engineering_hydrology": "大学工程水文学", "college_mathematics": "大学数学",
        "college_medical_statistics": "大学医学统计", "computer_science": "计算机科学",
        "conceptual_physics": "概念物理学", "electrical_engineering": "电气工程",
        "elementary_mathematics": "初等数学", "genetics": "遗传学",
        "high_school_biology": "高中生物", "high_school_chemistry": "高中化学", "high_school_mathematics": "高中数学",
        "high_school_physics": "高中物理学", "machine_learning": "机器学习", "virology": "病毒学",
    },
    "Humanities": {
        "arts": "艺术学", "chinese_history": "中国历史", "chinese_literature": "中国文学", "college_law": "大学法律",
        "global_facts": "全球事实", "international_law": "国际法学", "jurisprudence": "法理学", "logical": "逻辑学",
        "marxist_theory": "马克思主义理论", "philosophy": "哲学", "professional_law": "专业法学",
        "world_history": "世界历史", "world_religions": "世界宗教",
    },
    "Social Science": {
        "ancient_chinese": "古汉语", "business_ethics": "商业伦理", "chinese_civil_service_exam": "中国公务员考试",
        "chinese_food_culture": "中国饮食文化", "chinese_foreign_policy": "中国外交政策",
        "chinese_teacher_qualification": "中国教师资格", "college_education": "大学教育学", "economics": "经济学",
        "education": "教育学", "elementary_chinese": "小学语文", "ethnology": "民族学",
        "high_school_geography": "高中地理", "high_school_politics": "高中政治", "journalism": "新闻学",
        "management": "管理学", "marketing": "市场营销", "modern_chinese": "现代汉语",
        "professional_accounting": "专业会计", "professional_psychology": "专业心理学", "public_relations": "公共关系",
        "security_study": "安全研究", "sociology": "社会学",
    },
    "Other": {
        "agronomy": "农学", "chinese_driving_rule": "中国驾驶规则", "clinical_knowledge": "临床知识",
        "college_medicine": "大学医学", "computer_security": "计算机安全",
        "construction_project_management": "建设工程管理", "elementary_commonsense": "小学常识",
        "elementary_information_and_technology": "小学信息技术", "food_science": "食品科学",
        "human_sexuality": "人类性行为", "legal_and_moral_basis": "法律与道德基础", "nutrition": "营养学",
        "professional_medicine": "专业医学", "sports_science": "体育学", "traditional_chinese_medicine": "中医中药",
    },
}  # fmt: skip

CHINESE_NAMES = {subject: chinese for subjects in SUBJECTS.values() for subject, chinese in subjects.items()}

# These overlap the four categories.
CHINA_SPECIFIC = (
    "ancient_chinese", "chinese_civil_service_exam", "chinese_driving_rule", "chinese_food_culture",
    "chinese_foreign_policy", "chinese_history", "chinese_literature", "chinese_teacher_qualification",
    "construction_project_management", "elementary_chinese", "elementary_commonsense", "ethnology",
    "high_school_politics", "modern_chinese", "traditional_chinese_medicine",
)  # fmt: skip

DATA = DatasetSpec(
    name="cmmlu",
    licence="CC BY-NC-SA 4.0 (non-commercial)",
    homepage="https://github.com/haonan-li/CMMLU",
    url="https://raw.githubusercontent.com/haonan-li/CMMLU/d6e7b716d8ac694f38969a6c0407437d1fded799/data/{path}",
    groups=tuple(sorted(CHINESE_NAMES)),
    mini_groups=("chinese_food_culture", "computer_security", "conceptual_physics", "world_history"),
    splits={
        split: SplitSpec(
            file=f"{split}/{{group}}.csv",
            columns=("number", "question", *prompts.LETTERS, "answer"),
            header=("", "Question", *prompts.LETTERS, "Answer"),
            values={"answer": prompts.LETTERS},
            rows=rows,
            fingerprint=fingerprint,
        )
        for split, rows, fingerprint in (("test", 11582, "a6eb8bd1a31b42d8"), ("dev", 335, "09bd9cd68104b8db"))
    },
    folders=("cmmlu", "CMMLU/data", "cmmlu/data", "cmmlu_v1_0_1", "data", "."),
)

# -------------------------------------------------------------------------------------------------------------- prompts


def header(subject: str) -> str:
    """The line above an item (OpenCompass) or above all (lm-evaluation-harness)."""
    return f"以下是关于{CHINESE_NAMES[subject]}的单项选择题，请直接给出正确答案的选项。\n"


def opencompass_item(row: Row) -> str:
    """The user's part of an OpenCompass round: the header in every item, nothing after the options."""
    template = header(row["group"]) + "题目：{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}"
    return multiple_choice.filled(template, row, ("question", *prompts.LETTERS))


TASK = Task(
    name="cmmlu",
    title="CMMLU",
    paper="https://arxiv.org/abs/2306.09212",
    data=DATA,
    samples=multiple_choice.samples,
    letters=prompts.LETTERS,
    categories={
        **{category: tuple(subjects) for category, subjects in SUBJECTS.items()},
        "China specific": CHINA_SPECIFIC,
    },
    rules=multiple_choice.lettered_rules(choice.qwen_ceval),
    protocols=multiple_choice.protocols(
        average="macro",
        qwen=(
            multiple_choice.choose(multiple_choice.chinese_item, options=BARE),
            "Qwen's base script: log-probability of 'A' … 'D'",
        ),
        qwen_chat=(
            multiple_choice.chat(multiple_choice.chinese_chat_item),
            "ours: C-Eval's chat prompt and rule (Qwen published none)",
        ),
        opencompass=(
            # Without a chat template OpenCompass joins all parts, its own line breaks among them, with line breaks.
            multiple_choice.choose(
                lambda row: f"{opencompass_item(row)}\n答案是:", options=SPACED, between="\n" * 3, before_item="\n" * 5
            ),
            "OpenCompass cmmlu_ppl_8b9c76: log-probability of the letter after '答案是:'",
        ),
        opencompass_chat=(
            multiple_choice.rounds(opencompass_item, lambda row: f"答案是: {row['answer']}"),
            "OpenCompass cmmlu_gen_c13365: five rounds, first upper-case character",
        ),
        lm_eval=(
            multiple_choice.choose(
                multiple_choice.chinese_lm_eval_item, options=SPACED, header=lambda subject: f"{header(subject)}\n"
            ),
            "lm-evaluation-harness cmmlu, 5-shot: log-probability of ' A' … ' D'",
        ),
    ),
)
