"""Training text of the tiny tokenizers, and the pairs that the tiny models score. All of it was written for this purpose."""

EN = """
what is panda ? the giant panda is a bear that lives in china and eats bamboo .
how does a reranker compute a score for a query and a passage ?
a cross encoder reads the query and the passage together and returns one number .
the weather in paris is mild in spring and warm in summer .
Yes or No : does the passage contain an answer to the query ?
Yes , the passage contains an answer . No , it does not .
Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a prediction of either 'Yes' or 'No'.
Predict whether passage B contains an answer to query A.
A: what is the capital of france ? B: the capital of france is paris .
A: who wrote the book ? B: the author of the book is unknown .
tokens are merged in groups and the mean of every group is kept .
the model has many layers and every layer has attention and a feed forward network .
rust and cuda programs run on the gpu and need a kernel for every operation .
numbers 0 1 2 3 4 5 6 7 8 9 10 42 100 1024 2024 3.14159 -7 1e-5 50% 1,000,000
def f(x): return x ** 2 # a comment ; for (int i = 0; i < n; i++) { sum += a[i]; }
long passages are truncated on the right side , queries are kept up to three quarters of the length .
bamboo forest mountain river water tree animal black white fur zoo keeper visitor
The quick brown fox jumps over the lazy dog while the slow red turtle sleeps under the old bridge .
""".strip().split("\n")

OTHER = """
大熊猫 是 什么 ？ 大熊猫 生活 在 中国 ， 吃 竹子 。
查询 和 段落 一起 输入 模型 ， 得到 一个 分数 。 今天 天气 很 好 。
パンダ は 何 です か ？ パンダ は 竹 を 食べる 動物 です 。 東京 は 日本 の 首都 です 。
판다 는 무엇 입니까 ? 판다 는 대나무 를 먹는 동물 입니다 .
что такое панда ? большая панда живёт в китае и ест бамбук . столица россии москва .
qu'est-ce qu'un panda ? le panda géant vit en chine et mange du bambou . où est la forêt ?
was ist ein panda ? der große panda lebt in china und frisst bambus . die straße ist schön .
¿ qué es un panda ? el panda gigante vive en china y come bambú . el niño está en españa .
ما هو الباندا ؟ الباندا العملاق يعيش في الصين ويأكل الخيزران .
पांडा क्या है ? विशाल पांडा चीन में रहता है और बांस खाता है ।
gấu trúc là gì ? gấu trúc lớn sống ở trung quốc và ăn tre .
τι είναι το πάντα ; το γιγαντιαίο πάντα ζει στην κίνα .
מה זה פנדה ? הפנדה הענקית חיה בסין ואוכלת במבוק .
แพนด้า คือ อะไร แพนด้ายักษ์ อาศัย อยู่ ใน จีน
""".strip().split("\n")


def corpus():
    """The lines the tokenizers are trained on. The repeats make whole words frequent enough to become tokens."""
    lines = EN + OTHER + [word for line in EN for word in line.split()] + ["Yes", "No", "Yes Yes", "A: Yes", "B: No"]
    return lines * 12


PANDA = ("The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply panda, "
         "is a bear species endemic to China.")

LONG_PASSAGE = " ".join(
    "sentence %d says that the %s of the %s is %s and that %s%s" % (
        i,
        ["colour", "size", "name", "price", "age"][i % 5],
        ["panda", "bridge", "reranker", "forest", "kernel", "zoo"][i % 6],
        ["black", "small", "unknown", "42", "1,024", "très élevé", "很大"][i % 7],
        ["water is wet", "bamboo grows fast", "der Fluss ist lang", "что-то ещё", "竹子很高"][i % 5],
        [".", "!", " ...", ";"][i % 4])
    for i in range(60))
LONG_QUERY = "which of these many facts about pandas and bridges is true , " * 25 + "and why ?"

# (id, query, passage)
PAIRS = [
    ("panda_hi", "what is panda?", "hi"),
    ("panda_def", "what is panda?", PANDA),
    ("zh", "大熊猫是什么？", "大熊猫是中国特有的一种熊科动物，以竹子为食，生活在山地森林中。"),
    ("ja_ko", "パンダは何を食べますか？", "판다는 대나무를 먹는 동물입니다. パンダは竹を食べます。"),
    ("ru_ar", "Где живёт большая панда?", "الباندا العملاق يعيش في الصين ويأكل الخيزران. Большая панда живёт в Китае."),
    ("empty_query", "", "The capital of France is Paris."),
    ("empty_passage", "what is the capital of France?", ""),
    ("both_empty", "", ""),
    ("long_passage", "what colour is the bridge in sentence 7 ?", LONG_PASSAGE),
    ("long_both", LONG_QUERY, LONG_PASSAGE),
    ("special_literals", "what do <s> and </s> mean?", "<pad> <mask> <unk> <bos> <eos> </s> are special tokens, <s>B: Yes</s>"),
    ("whitespace", "  leading and   double  spaces\t tab\n newline ", "a\u00a0b\u200bc \u3000 ﬁne Ａｂｃ ① ½ e\u0301 \u0065\u0301 naïve  \n\n end  "),
    ("emoji_code", "for (int i=0;i<n;i++) 🙂👩‍👩‍👧‍👦?", "def f(x): return x**2  # 12345 67890 🙂🚀 🏳️‍🌈"),
    ("odd_7", "is it odd ?", "one two three four five six seven"),
]
