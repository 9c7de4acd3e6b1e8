use std::time::Instant;
fn main() {
    let engine = im2sp::Engine::embedded().unwrap();
    let picture = im2sp::Image::open("assets/scene.png").unwrap();
    let o = im2sp::CaptionOptions::default();
    for i in 0..6 {
        let c = Instant::now();
        let cap = engine.caption(&picture, &o).unwrap();
        let whole = c.elapsed().as_secs_f64() * 1e3;
        let c = Instant::now();
        let chunks: Vec<(f64, usize)> = engine
            .stream(&picture, &o)
            .map(|x| {
                let x = x.unwrap();
                (c.elapsed().as_secs_f64() * 1e3, x.samples.len() / 320)
            })
            .collect();
        if i > 0 {
            println!("whole {whole:.1} {:?} stream {:.1} {chunks:.1?}", cap.timings, c.elapsed().as_secs_f64() * 1e3);
        }
    }
}
