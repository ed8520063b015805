//! Tables of question pairs: paraphrases must pass, look-alikes must be refused.

use super::Features;

const PASS: &[(&str, &str)] = &[
    ("How do I reset my password?", "how do I reset my password"),
    (
        "How do I reset my password?",
        "How can I reset my password?",
    ),
    (
        "How do I reset my password?",
        "What is the way to reset my password?",
    ),
    (
        "How do I reset my password?",
        "What are the steps to reset the password?",
    ),
    (
        "How do I reset my password?",
        "I don't know how to reset my password",
    ),
    ("How do I reset my password?", "resetting my password"),
    ("How do I enable 2FA?", "How do I turn on 2FA?"),
    ("How do I enable 2FA?", "How do I activate 2FA?"),
    ("How do I enable 2FA?", "How can I switch 2FA on?"),
    (
        "How do I disable notifications?",
        "How do I turn off notifications?",
    ),
    (
        "How do I disable notifications?",
        "How do I turn notifications off?",
    ),
    (
        "How do I delete my account?",
        "How can I remove my account?",
    ),
    ("How do I delete my account?", "How do I close my account?"),
    (
        "How do I enable two-factor authentication?",
        "How do I enable two factor authentication?",
    ),
    (
        "What is the timeout of 5 minutes for?",
        "What is the timeout of five minutes for?",
    ),
    ("Is a 10 MB file allowed?", "Is a 10MB file permitted?"),
    ("Does it cost $1,000?", "Does it cost 1000 USD?"),
    ("What changed in version 2.1?", "What changed in v2.1?"),
    (
        "How do I connect to PostgreSQL?",
        "How can I connect to Postgres?",
    ),
    ("how do I deploy to kubernetes", "How do I deploy to K8s?"),
    ("Why can't I log in?", "Why am I unable to log in?"),
    (
        "Is this feature not supported?",
        "Is this feature unsupported?",
    ),
    ("How to fix the error", "How to resolve the issue"),
    (
        "How much does shipping cost?",
        "What is the price of shipping?",
    ),
    (
        "How Do I Reset My Password",
        "how do i reset my password please",
    ),
    (
        "Where can I find my invoices?",
        "Where do I locate my invoice?",
    ),
    (
        "What does the error \"disk full\" mean?",
        "the error \"disk full\": what does it mean?",
    ),
    (
        "How do I call read_file() in Rust?",
        "How can I call read_file() in Rust?",
    ),
    (
        "How do I convert PDF to Word?",
        "What is the best way to convert PDF to Word?",
    ),
    (
        "Can I transfer money from savings to checking?",
        "How can I transfer money from savings to checking?",
    ),
    ("How do I buy a ticket?", "How do I purchase a ticket?"),
    ("How do I cancel my order?", "How can I cancel my orders?"),
    ("Show all users", "Display all users"),
    (
        "How do I change my pasword?",
        "How do I change my password?",
    ),
    ("Is it possible to export reports?", "Can I export reports?"),
    ("How long is the warranty?", "how long is the warranty"),
    (
        "Is there a limit on uploads?",
        "Is there any limit on the uploads?",
    ),
    ("How do I stop the server?", "How do I halt the server?"),
    (
        "What happens after the trial ends?",
        "What happens after the trial has ended?",
    ),
    ("How do I use the API?", "how to use the api"),
    ("What is Okta's role?", "What is the role of Okta?"),
    (
        "Who approves expenses?",
        "Who is it that approves the expenses?",
    ),
];

const REFUSE: &[(&str, &str, &str)] = &[
    (
        "How do I enable 2FA?",
        "How do I enable 3FA?",
        "numbers differ: 2FA/3FA",
    ),
    ("How do I enable 2FA?", "How do I disable 2FA?", "polarity"),
    (
        "How do I turn on 2FA?",
        "How do I turn off 2FA?",
        "polarity",
    ),
    ("How do I turn it on?", "How do I turn it off?", "polarity"),
    ("Where is order 48213?", "Where is order 48231?", "numbers"),
    (
        "What changed in version 2.1?",
        "What changed in version 2.2?",
        "numbers",
    ),
    (
        "Is the timeout 5 minutes?",
        "Is the timeout 5 hours?",
        "numbers",
    ),
    ("Is the limit 10MB?", "Is the limit 10GB?", "numbers"),
    ("Does it cost $100?", "Does it cost €100?", "numbers"),
    ("Is a 5% fee charged?", "Is a 15% fee charged?", "numbers"),
    ("Upgrade from 2 to 3", "Upgrade from 3 to 2", "numbers"),
    (
        "What are the rules for two users?",
        "What are the rules for three users?",
        "numbers",
    ),
    (
        "What is new in Python 3?",
        "What is new in Python?",
        "numbers",
    ),
    ("Is smoking allowed?", "Is smoking not allowed?", "polarity"),
    ("Is smoking allowed?", "Is smoking forbidden?", "polarity"),
    (
        "Can I return it with a receipt?",
        "Can I return it without a receipt?",
        "polarity",
    ),
    ("Why does it work?", "Why doesn't it work?", "polarity"),
    ("Why can I log in?", "Why can't I log in?", "polarity"),
    (
        "Which plans include support?",
        "Which plans exclude support?",
        "polarity",
    ),
    (
        "Is the feature supported?",
        "Is the feature unsupported?",
        "polarity",
    ),
    (
        "Is the setting visible?",
        "Is the setting invisible?",
        "polarity",
    ),
    (
        "How do I lock the door?",
        "How do I unlock the door?",
        "polarity",
    ),
    (
        "How do I install the app?",
        "How do I uninstall the app?",
        "polarity",
    ),
    (
        "How do I add a user?",
        "How do I remove a user?",
        "polarity",
    ),
    (
        "Should I always restart?",
        "Should I never restart?",
        "polarity",
    ),
    (
        "enable logging and disable tracing",
        "disable logging and enable tracing",
        "polarity",
    ),
    (
        "Can I eat before the test?",
        "Can I eat after the test?",
        "direction",
    ),
    (
        "How do I import data?",
        "How do I export data?",
        "direction",
    ),
    (
        "How do I upload a file?",
        "How do I download a file?",
        "direction",
    ),
    (
        "What is the maximum size?",
        "What is the minimum size?",
        "direction",
    ),
    (
        "Who is the first winner?",
        "Who is the last winner?",
        "direction",
    ),
    ("Is it open in Paris?", "Is it open in London?", "names"),
    ("How do I use Okta?", "How do I use Auth0?", "numbers"),
    (
        "How do I reset my password in Okta?",
        "How do I reset my password?",
        "names",
    ),
    (
        "Is the shop open on Monday?",
        "Is the shop open on Friday?",
        "names",
    ),
    (
        "How do I call read_file?",
        "How do I call write_file?",
        "names",
    ),
    (
        "What does \"disk full\" mean?",
        "What does \"disk failed\" mean?",
        "quotes",
    ),
    ("How do I learn C++?", "How do I learn C#?", "names"),
    (
        "How do I convert PDF to Word?",
        "How do I convert Word to PDF?",
        "roles",
    ),
    (
        "transfer money from savings to checking",
        "transfer money from checking to savings",
        "roles",
    ),
    (
        "Does the dog bite the man?",
        "Does the man bite the dog?",
        "roles",
    ),
    (
        "How do I cancel my order?",
        "How do I track my order?",
        "polarity",
    ),
    (
        "What is the refund policy?",
        "What is the privacy policy?",
        "words",
    ),
    (
        "Shipping cost for members",
        "Shipping cost for guests",
        "words",
    ),
    (
        "How do I reset my password?",
        "How do I reset my phone?",
        "words",
    ),
    (
        "What is the capital of the region?",
        "What is the population of the region?",
        "words",
    ),
];

#[test]
fn paraphrases_pass() {
    let refused: Vec<_> = (PASS.iter())
        .flat_map(|(a, b)| [(a, b), (b, a)])
        .filter_map(|(a, b)| {
            Features::of(a)
                .agrees(&Features::of(b))
                .err()
                .map(|why| format!("{a} | {b}: {why}"))
        })
        .collect();
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn look_alikes_are_refused() {
    let mut wrong = Vec::new();
    for (a, b, reason) in REFUSE {
        let forth = Features::of(a).agrees(&Features::of(b));
        let back = Features::of(b).agrees(&Features::of(a));
        match &forth {
            Err(why) if why.starts_with(reason) && back.is_err() => {}
            _ => wrong.push(format!("{a} | {b}: {forth:?}, expected {reason}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn any_text_is_read_without_panic() {
    for text in [
        "",
        " ",
        "?!",
        "\"",
        "€",
        "€5",
        "ß—“x",
        "-5",
        "--",
        "'s",
        "n't",
        "a/b//c",
        "５",
        "1-2-3",
        "٣",
    ] {
        let features = Features::of(text);
        assert_eq!(features.agrees(&features), Ok(()));
        let _ = features.agrees(&Features::of("How do I enable 2FA?"));
        let _ = Features::of("How do I enable 2FA?").agrees(&features);
    }
    let long = "why ".repeat(8_000);
    let _ = Features::of(&long).agrees(&Features::of(&long.replace("why", "not")));
}
