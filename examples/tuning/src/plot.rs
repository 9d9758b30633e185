//! Line plots over the number of replicas, with logarithmic axes.

use std::path::Path;

use plotters::prelude::*;

pub struct Line {
    pub name: &'static str,
    pub points: Vec<(f64, f64)>,
}

pub struct Plot {
    title: &'static str,
    lines: [Line; 3],
}

/// The least value of the vertical axis. A logarithmic axis has no zero, so smaller values are
/// drawn here.
const LEAST: f64 = 0.1;

impl Plot {
    pub fn new(title: &'static str, lines: [Line; 3]) -> Self {
        Self { title, lines }
    }

    pub fn draw(&self, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let most =
            |of: fn(&(f64, f64)) -> f64| points().map(of).filter(|x| x.is_finite()).fold(1.0, f64::max);
        let (right, top) = (most(|point| point.0), most(|point| point.1) * 10.0);
        let root = SVGBackend::new(path, (720, 440)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d((1.0..right).log_scale(), (LEAST..top).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("replicas")
            .y_desc("values up to 0.1 are at the bottom")
            .x_label_formatter(&|x| x.to_string())
            .light_line_style(WHITE)
            .draw()?;
        for (line, colour) in self.lines.iter().zip([BLUE, RED, BLACK]) {
            let points = line.points.iter().map(|(x, y)| (*x, y.clamp(LEAST, top)));
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?
                .label(line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .border_style(BLACK)
            .draw()?;
        root.present()?;
        Ok(())
    }
}
