//! The first steps with the client; the README shows the same.

use accolade::client::{Client, RecordId};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::var("ACCOLADE_SERVER");
    let client = Client::connect(server.as_deref().unwrap_or("http://127.0.0.1:50151"))?;

    // Counted once, however often its answer gets lost (its id is known for 8 more updates).
    let steps = RecordId::new("demo", "10001", "first_steps");
    let answer = client.add(&steps, 1).await?;
    println!("newly completed: {}", answer.newly_completed);

    // With a text, on the version that this client saw last. On a conflict it is asked whether to
    // go on, and for the text once more.
    let walk = RecordId::new("demo", "10001", "sky_walker");
    let extra = || "red hat".to_owned();
    let goes_on = |stored: &accolade::proto::v1::RecordState| stored.progress < 100;
    client.add(&walk, 5).with_extra(extra, goes_on).await?;

    // Resumes by itself. Keep the cursor together with what the completion causes. `next_event`
    // tells of resets too.
    let mut watch = client.watch("demo").from_oldest();
    loop {
        let completion = watch.next().await?;
        println!("{} {} {}", completion.player_id, completion.achievement_id, completion.cursor);
    }
}
